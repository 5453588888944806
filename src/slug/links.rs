//! Where a symbolic link leads, found by walking a listing instead of the disk.
//!
//! Taking a path's words one by one (`a/../b`) is not enough, since `a` may itself be a link: the walk below does what
//! the kernel would do, over a tree that nobody can change meanwhile.

/// Where a link's target lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leads {
    Inside,
    Outside,
    /// The target, or a link on the way to it, starts at the root of whatever system follows it.
    Absolute,
}

/// Linux gives up after this many links on one way (`path_resolution(7)`), so a longer way leads nowhere.
const MOST_LINKS: usize = 40;

/// Follows `target` from the folder that holds `link`. `look` gives the target of the link at a path, if one is there.
/// Paths are relative to the tree's root, without `.` or `..`.
pub(super) fn leads<'a>(link: &[u8], target: &'a [u8], look: impl Fn(&[u8]) -> Option<&'a [u8]>) -> Leads {
    let mut at: Vec<Vec<u8>> = link.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
    at.pop();
    let mut ahead: Vec<&'a [u8]> = Vec::new();
    let mut followed = 0;
    if target.first() == Some(&b'/') {
        return Leads::Absolute;
    }
    ahead.extend(target.split(|byte| *byte == b'/').rev());
    while let Some(word) = ahead.pop() {
        match word {
            b"" | b"." => {}
            b".." => {
                if at.pop().is_none() {
                    return Leads::Outside;
                }
            }
            name => {
                at.push(name.to_vec());
                if let Some(next) = look(&at.join(&b'/')) {
                    followed += 1;
                    if followed > MOST_LINKS {
                        return Leads::Inside;
                    }
                    if next.first() == Some(&b'/') {
                        return Leads::Absolute;
                    }
                    at.pop();
                    ahead.extend(next.split(|byte| *byte == b'/').rev());
                }
            }
        }
    }
    Leads::Inside
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_followed_as_the_kernel_would() {
        let links: &[(&[u8], &[u8])] =
            &[(b"deep/er/up", b"../.."), (b"root", b"."), (b"loop", b"loop"), (b"abs", b"/etc"), (b"deep/in", b"er")];
        let look = |path: &[u8]| links.iter().find(|(name, _)| *name == path).map(|(_, target)| *target);
        let cases: &[(&[u8], &[u8], Leads)] = &[
            (b"x", b"deep/er", Leads::Inside),
            (b"x", b"..", Leads::Outside),
            (b"deep/x", b"..", Leads::Inside),
            (b"deep/x", b"../..", Leads::Outside),
            (b"x", b"deep/../../etc/passwd", Leads::Outside),
            // Word by word this stays inside; followed, it doesn't.
            (b"x", b"deep/er/up/..", Leads::Outside),
            (b"x", b"root/root/../a", Leads::Outside),
            (b"deep/er/x", b"../in/up", Leads::Inside),
            (b"x", b"loop/../../..", Leads::Inside),
            (b"x", b"abs/passwd", Leads::Absolute),
            (b"x", b"/app/y", Leads::Absolute),
            (b"x", b"missing/../y", Leads::Inside),
            (b"x", b"missing/../../y", Leads::Outside),
            (b"x", b"", Leads::Inside),
        ];
        for (link, target, expected) in cases {
            let (link_text, target_text) = (String::from_utf8_lossy(link), String::from_utf8_lossy(target));
            assert_eq!(leads(link, target, look), *expected, "{link_text} -> {target_text}");
        }
    }
}
