//! Connections whose small pieces go out together.

use crate::router::socket::{Socket, begin_gathering, end_gathering, send_gathered};
use crate::router::tunnel::pass;
use nix::sys::socket::MsgFlags;
use std::future::poll_fn;
use std::io::{self, IoSlice, Read};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{sleep, timeout};

/// Runs on a thread that gathers, as those of the router do.
fn gathering(test: impl Future<Output = ()>) {
    begin_gathering();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().on_thread_park(send_gathered).build().unwrap().block_on(test);
    end_gathering();
}

/// A connection, and its other end.
async fn connection() -> (Socket, std::net::TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let near = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (far, _) = listener.accept().unwrap();
    far.set_nonblocking(true).unwrap();
    (Socket::new(near), far)
}

/// What has arrived at the other end.
fn arrived(mut far: &std::net::TcpStream) -> String {
    let (mut text, mut piece) = (String::new(), [0; 1024]);
    loop {
        match far.read(&mut piece) {
            Ok(0) => return text + "<end>",
            Ok(length) => text.push_str(std::str::from_utf8(&piece[..length]).unwrap()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return text,
            Err(error) => return format!("{text}<{:?}>", error.kind()),
        }
    }
}

/// Bytes that tell their place.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|place| (place % 251) as u8).collect()
}

#[test]
fn pieces_of_any_size_arrive_as_they_were_written() {
    async fn check() {
        let (mut near, far) = connection().await;
        let mut far = tokio::net::TcpStream::from_std(far).unwrap();
        for lengths in [vec![5], vec![0, 7, 0], vec![2000, 2096], vec![2000, 2097], vec![1, 100_000], vec![5000, 1]] {
            let all = bytes(lengths.iter().sum());
            let mut rest = all.as_slice();
            let pieces = lengths.iter().map(|length| {
                let (piece, after) = rest.split_at(*length);
                rest = after;
                IoSlice::new(piece)
            });
            let mut pieces: Vec<IoSlice<'_>> = pieces.collect();
            let mut left = pieces.as_mut_slice();
            let write = async {
                while !left.is_empty() {
                    let written = near.write_vectored(left).await.unwrap();
                    IoSlice::advance_slices(&mut left, written);
                }
                near.write_all(&all).await.unwrap();
                near.flush().await.unwrap();
            };
            let mut seen = vec![0; 2 * all.len()];
            let (_, read) = tokio::join!(write, tokio::io::AsyncReadExt::read_exact(&mut far, &mut seen));
            read.unwrap();
            assert!(seen == [all.as_slice(), &all].concat(), "{lengths:?}");
        }
    }
    gathering(check());
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(check());
}

#[test]
fn small_pieces_go_out_when_there_is_nothing_else_to_do() {
    gathering(async {
        let ((mut one, far_one), (mut other, far_other)) = (connection().await, connection().await);
        one.write_all(b"first ").await.unwrap();
        other.write_all(b"hello").await.unwrap();
        one.write_all(b"second").await.unwrap();
        one.flush().await.unwrap();
        assert_eq!((arrived(&far_one), arrived(&far_other)), (String::new(), String::new()));
        sleep(Duration::from_millis(1)).await;
        assert_eq!((arrived(&far_one).as_str(), arrived(&far_other).as_str()), ("first second", "hello"));
    });
}

#[test]
fn pieces_do_not_wait_for_a_thread_that_always_has_something_to_do() {
    gathering(async {
        let ((mut one, far), (mut busy, _other)) = (connection().await, connection().await);
        one.write_all(b"hello").await.unwrap();
        let mut reads = 0;
        while arrived(&far).is_empty() {
            poll_fn(|context| Poll::Ready(Pin::new(&mut busy).poll_read(context, &mut ReadBuf::new(&mut [0]))))
                .await
                .is_pending();
            reads += 1;
            assert!(reads <= 64, "it waits for ever");
        }
        assert!(reads > 1, "it did not wait");

        let mut many = Vec::new();
        for _ in 0..64 {
            many.push(connection().await);
        }
        for (number, (near, _)) in many.iter_mut().enumerate() {
            near.write_all(format!("{number}").as_bytes()).await.unwrap();
        }
        for (number, (_, far)) in many.iter().enumerate() {
            assert_eq!(arrived(far), number.to_string());
        }
    });
}

#[test]
fn what_the_system_does_not_take_at_once_arrives_in_order() {
    gathering(async {
        let (mut near, far) = connection().await;
        let mut far = tokio::net::TcpStream::from_std(far).unwrap();
        let all = bytes(20_000_000);
        let written = std::cell::Cell::new(0);
        let write = async {
            for piece in all.chunks(1_000) {
                near.write_all(piece).await.unwrap();
                near.flush().await.unwrap();
                written.set(written.get() + piece.len());
                tokio::task::yield_now().await;
            }
            near.shutdown().await.unwrap();
        };
        let read = async {
            while {
                let before = written.get();
                sleep(Duration::from_millis(50)).await;
                written.get() != before
            } {}
            assert!(written.get() < all.len(), "the system took everything");
            let mut seen = Vec::new();
            tokio::io::AsyncReadExt::read_to_end(&mut far, &mut seen).await.unwrap();
            seen
        };
        let (_, seen) = tokio::join!(write, read);
        assert!(seen == all);
    });
}

/// The app may wait for an answer to it, and send nothing more.
#[test]
fn what_goes_through_a_tunnel_to_a_full_system_follows_by_itself() {
    gathering(async {
        let (mut near, far) = connection().await;
        let mut far = tokio::net::TcpStream::from_std(far).unwrap();
        let mut full = 0;
        while let Ok(length) = nix::sys::socket::send(near.as_raw_fd(), &[b'x'; 9_999], MsgFlags::MSG_DONTWAIT) {
            full += length;
        }
        let (mut app, mut from_app) = tokio::io::duplex(100);
        app.write_all(b"hello").await.unwrap();
        let read = async {
            sleep(Duration::from_millis(20)).await;
            let mut seen = vec![0; full + 5];
            tokio::io::AsyncReadExt::read_exact(&mut far, &mut seen).await.unwrap();
            assert!(seen.ends_with(b"xhello"));
        };
        tokio::select! {
            _ = pass(&mut from_app, &mut near) => panic!("it ended"),
            read = timeout(Duration::from_secs(10), read) => read.expect("the last piece never came"),
        }
        drop(app);
        pass(&mut from_app, &mut near).await.unwrap();
    });
}

#[test]
fn what_goes_wrong_later_is_told_to_whoever_leads_the_connection() {
    gathering(async {
        let (mut near, far) = connection().await;
        nix::sys::socket::setsockopt(
            &far,
            nix::sys::socket::sockopt::Linger,
            &nix::libc::linger { l_onoff: 1, l_linger: 0 },
        )
        .unwrap();
        drop(far);
        let mut wrote = false;
        let told = poll_fn(|context| {
            if wrote {
                return Pin::new(&mut near).poll_flush(context);
            }
            wrote = true;
            match Pin::new(&mut near).poll_write(context, b"hello") {
                Poll::Ready(Ok(5)) => Poll::Pending,
                other => panic!("{other:?}"),
            }
        });
        let told = timeout(Duration::from_secs(10), told).await.expect("somebody is woken");
        assert!(told.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset));
        near.write_all(b"more").await.unwrap();
        sleep(Duration::from_millis(1)).await;
        assert_eq!(near.write(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    });
}

#[test]
fn nothing_is_left_behind_when_a_connection_ends() {
    gathering(async {
        let (mut near, far) = connection().await;
        near.write_all(b"hello").await.unwrap();
        near.shutdown().await.unwrap();
        assert_eq!(arrived(&far), "hello<end>");
        let (mut near, far) = connection().await;
        near.write_all(b"hello").await.unwrap();
        drop(near);
        assert_eq!(arrived(&far), "hello<end>");
        let (mut near, far) = connection().await;
        near.write_all(b"hello, ").await.unwrap();
        near.send_last(b"and farewell");
        assert_eq!(arrived(&far), "hello, and farewell");
    });
}
