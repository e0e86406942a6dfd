FROM debian:bookworm
RUN mkdir -p /usr/share/man/man1 && apt-get update && apt-get install -y --no-install-recommends openjdk-17-jdk-headless libgoogle-gson-java && rm -rf /var/lib/apt/lists/*
