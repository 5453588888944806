# Landfall in one container: control plane, router and every app's sandbox.
#
#   docker build -t landfall .
#
# The demo listens on loopback addresses only and prints links to them, hence the host's network:
#
#   docker run --rm -it --init --network host \
#     --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined \
#     landfall demo                       # or: demo --once
#
# On a server, with a configuration that says data_dir = "/var/lib/landfall":
#
#   docker run -d --name landfall --init --network host --restart unless-stopped \
#     --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined \
#     -v landfall:/var/lib/landfall -v /etc/landfall:/etc/landfall:ro \
#     landfall --config /etc/landfall/landfall.toml serve
#
# Why the security options: each process of an app gets namespaces, mounts and a /proc of its own, by bubblewrap and
# without root. Docker's system call filter and its AppArmor profile refuse the making of namespaces, and its masked
# paths below /proc make the kernel refuse a new /proc inside one. What is given up is Docker's wall around Landfall; the
# walls around the apps are Landfall's own, with a system call filter of their own. `--privileged` is not needed.
# `--init` gives the container a first process that collects what apps leave. Where the container ends, its apps end:
# for apps that outlive a new version of Landfall install it on the machine itself (packaging/).

FROM rust:1-bookworm AS builder
WORKDIR /landfall
COPY . .
RUN cargo build --release --locked --bin landfall

FROM debian:bookworm-slim
# The toolchains are those of the built-in buildpacks; inside a sandbox there is nothing but this image's /usr.
ARG TOOLCHAINS="python3 python3-venv nodejs npm"
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap git ca-certificates $TOOLCHAINS \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10000 --user-group --home-dir /var/lib/landfall --create-home --shell /usr/sbin/nologin landfall
COPY --from=builder /landfall/target/release/landfall /usr/local/bin/landfall
USER landfall
WORKDIR /var/lib/landfall
# Where the demo would otherwise play in a layer of the image.
ENV TMPDIR=/var/lib/landfall
VOLUME /var/lib/landfall
# Control plane and router, where the configuration lets them listen on more than loopback.
EXPOSE 8080 8000
ENTRYPOINT ["landfall"]
CMD ["--help"]
