package sandbox

import (
	"archive/tar"
	"strings"
	"time"

	"naru/sandbox/build"
)

// hostileCases is the table. What a case says after "! " must fail inside the step.
func hostileCases() []hostileCase {
	return slicesOf(hostileProcesses(), hostileMemory(), hostileDisk(), hostileFiles(), hostileMounts(), hostileKernel(), hostileNetwork(), hostileText())
}

func slicesOf(lists ...[]hostileCase) (all []hostileCase) {
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

func soon(o *build.Options) { o.StepTimeout = 700 * time.Millisecond }

func hostileProcesses() []hostileCase {
	return []hostileCase{
		{name: "fork bomb", file: "RUN b() { b | b & }; b; sleep 1; exit 1", want: "processes", slow: true},
		{name: "fork bomb of daemons", file: "RUN while :; do busybox setsid sleep 1000 & done", want: "processes"},
		{name: "fork bomb that goes on", file: "RUN while :; do (sleep 100 &) 2>/dev/null || true; done", o: soon, want: "time|processes", slow: true},
		{name: "daemon is left behind", file: "RUN busybox setsid sleep 1000 >/dev/null 2>&1 </dev/null &"},
		{name: "daemon by two forks", file: "RUN (sh -c 'sleep 1000 & exit 0' &)"},
		{name: "daemon holds the output", file: "RUN sleep 1000 & echo gone", out: "gone"},
		{name: "daemon ignores signals", file: "RUN (trap '' TERM HUP INT; while :; do sleep 1; done) & true"},
		{name: "daemon writes to the layer", file: "RUN (while :; do echo x >> /f; done) & sleep 0.05"},
		{name: "daemon in the background of a heredoc", file: "RUN <<E\nbusybox setsid sh -c 'sleep 1000' &\ntrue\nE"},
		{name: "init ignores signals", file: "RUN trap '' TERM INT HUP; while :; do sleep 1; done", o: soon, want: "time"},
		{name: "stopped processes", file: "RUN sh -c 'kill -STOP $$; true'; true", o: soon, want: "time"},
		{name: "endless loop", file: "RUN while :; do :; done", o: soon, want: "time"},
		{name: "time limit of the build", file: "RUN while :; do :; done", o: func(o *build.Options) { o.Timeout = 600 * time.Millisecond }, want: "time"},
		{name: "waits for input", file: "RUN cat", want: ""},
		{name: "kills everything it sees", file: "RUN kill -9 -1; echo alive", out: "alive"},
		{name: "zombies", file: "RUN i=0; while [ $i -lt 300 ]; do (true &); i=$((i+1)); done", want: "|processes", slow: true},
		{name: "signal of its own", file: "RUN sh -c 'kill -ABRT $$'; exit $?", want: "signal"},
		{name: "many threads of pipes", file: "RUN i=0; while [ $i -lt 100 ]; do sleep 100 | sleep 100 & i=$((i+1)); done; wait", want: "processes"},
	}
}

func hostileMemory() []hostileCase {
	return []hostileCase{
		{name: "memory", file: "RUN busybox tail /dev/zero", want: "memory"},
		{name: "memory of children", file: "RUN for i in 1 2 3; do busybox tail /dev/zero & done; wait; sleep 0.1; false", want: "memory"},
		{name: "memory of a shell variable", file: "RUN x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done", want: "memory|signal|exit"},
		{name: "/dev/shm", file: "RUN dd if=/dev/zero of=/dev/shm/x bs=1M count=90", o: func(o *build.Options) { o.Memory = 32 << 20 }, want: "memory"},
		{name: "tmpfs without a size", file: "RUN --mount=type=tmpfs,target=/t dd if=/dev/zero of=/t/x bs=1M count=200", want: "memory"},
		{name: "tmpfs with a huge size", file: "RUN --mount=type=tmpfs,target=/t,size=100g dd if=/dev/zero of=/t/x bs=1M count=200", want: "memory"},
		{name: "/dev itself", file: "RUN dd if=/dev/zero of=/dev/x bs=1M count=90", want: "exit|memory"},
		{name: "the directory of secrets", file: "RUN --mount=type=secret,id=token dd if=/dev/zero of=/run/secrets/token bs=1M count=10", want: "exit"},
		{name: "page cache", file: "RUN dd if=/dev/zero of=/x bs=1M count=80; cat /x /x /x > /dev/null; rm /x"},
	}
}

func hostileDisk() []hostileCase {
	return []hostileCase{
		{name: "disk", file: "RUN dd if=/dev/zero of=/x bs=1M count=2000; sleep 10", want: "disk"},
		{name: "disk in many files", file: "RUN i=0; while :; do dd if=/dev/zero of=/x$i bs=1M count=10 2>/dev/null; i=$((i+1)); done", want: "disk", slow: true},
		{name: "disk without a name", file: "RUN exec 3>/x; rm /x; dd if=/dev/zero bs=1M count=2000 >&3; sleep 10", want: "disk"},
		{name: "disk in a cache", file: "RUN --mount=type=cache,target=/c,id=fill dd if=/dev/zero of=/c/x bs=1M count=2000; sleep 10", want: "disk"},
		{name: "disk in a bind", file: "RUN --mount=target=/c,rw dd if=/dev/zero of=/c/x bs=1M count=2000; sleep 10", want: "disk"},
		{name: "disk step by step", file: "RUN dd if=/dev/urandom of=/x bs=1M count=60\nRUN dd if=/dev/urandom of=/y bs=1M count=60; sleep 10", want: "disk", slow: true},
		{name: "disk at once", file: "RUN busybox fallocate -l 20G /x && sleep 10", want: "disk|exit"},
		{name: "sparse file", file: "RUN busybox truncate -s 1000G /x", want: "error:holes too"},
		{name: "sparse files", file: "RUN busybox truncate -s 8191P /x /y /z; busybox truncate -s 15T /a; ls -l /a", want: "error:holes too|exit"},
		{name: "inodes", file: "RUN mkdir /d; cd /d; seq 1 300000 | busybox xargs touch; sleep 10", want: "inodes"},
		{name: "directories", file: "RUN seq 1 300000 | busybox xargs mkdir -p; sleep 10", want: "inodes", slow: true},
		{name: "links", file: "RUN touch /f; i=0; while [ $i -lt 300 ]; do ln /f /l$i; i=$((i+1)); done"},
		{name: "deep tree", file: "RUN i=0; while [ $i -lt 1500 ]; do mkdir d && cd d || exit 0; i=$((i+1)); done", want: "|exit|inodes|error:", slow: true},
		{name: "deeper than a path", file: "RUN i=0; while [ $i -lt 60 ]; do n=" + strings.Repeat("n", 200) + "; mkdir $n && cd $n || exit 0; i=$((i+1)); done", want: "|exit|error:", slow: true},
		{name: "inodes in a cache", file: "RUN --mount=type=cache,target=/d cd /d; seq 1 300000 | busybox xargs touch; sleep 10", want: "inodes", slow: true},
	}
}

func hostileFiles() []hostileCase {
	reg, dir, link, hard := byte(tar.TypeReg), byte(tar.TypeDir), byte(tar.TypeSymlink), byte(tar.TypeLink)
	add := func(name string, want string, entries ...tar.Header) hostileCase {
		return hostileCase{name: "archive: " + name, file: "ADD a.tar /x/\nRUN ls /x /tmp || true", want: want, data: map[string][]byte{"a.tar": archive(entries...)}}
	}
	return []hostileCase{
		{name: "rm -rf /", file: "RUN busybox rm -rf / ; busybox rm -rf /bin /etc /root /srv /tmp /*", want: "|exit"},
		{name: "rm -rf of everything, twice", file: "RUN busybox rm -rf /* 2>/dev/null; true\nRUN true", want: "exit"},
		{name: "shadow the shell by a directory", file: "RUN rm /bin/sh && mkdir /bin/sh\nRUN true", want: "exit"},
		{name: "COPY of a link out", file: "COPY l /n", ctx: map[string]string{"l@": "CANARY/secret"}, want: "error:not in the build context"},
		{name: "COPY through a link out", file: "COPY l/secret /n", ctx: map[string]string{"l@": "CANARY"}, want: "error:not in the build context"},
		{name: "COPY of dots", file: "COPY ../canary/secret /n", want: "error:not in the build context"},
		{name: "COPY of a magic link", file: "COPY l /n", ctx: map[string]string{"l@": "/proc/self/root/CANARY/secret"}, want: "error:not in the build context"},
		{name: "COPY to a link out", file: "RUN ln -s CANARY /l\nCOPY Dockerfile /l/new"},
		{name: "COPY to dots", file: "COPY Dockerfile ../../../../CANARY/new"},
		{name: "COPY onto a link out", file: "RUN ln -s CANARY/secret /l\nCOPY Dockerfile /l"},
		{name: "COPY of a stage's link", file: "RUN ln -s CANARY/secret /l\nFROM busybox\nCOPY --from=0 /l /n", want: "error:no such file"},
		{name: "COPY with the owner of a link", file: "RUN rm /etc/passwd; ln -s CANARY/secret /etc/passwd\nCOPY --chown=plain Dockerfile /n", want: "error:unknown user"},
		{name: "WORKDIR through a link out", file: "RUN ln -s CANARY /l\nWORKDIR /l/new\nRUN touch f"},
		{name: "WORKDIR of a descriptor", file: "WORKDIR /proc/self/fd/7\nRUN cat ../../../CANARY/secret", want: "error:not in /proc"},
		{name: "WORKDIR of another descriptor", file: "WORKDIR /proc/self/fd/8/../../../CANARY\nRUN cat secret", want: "|error:|exit"},
		{name: "WORKDIR by a link to a descriptor", file: "RUN ln -s /proc/self/fd/7 /l\nWORKDIR /l\nRUN cat ../../../CANARY/secret", want: "error:|exit"},
		{name: "WORKDIR of cwd", file: "RUN ln -s /proc/self/cwd /l\nWORKDIR /l/../..\nRUN cat CANARY/secret", want: "error:|exit"},
		{name: "WORKDIR in /sys", file: "WORKDIR /sys/fs/cgroup", want: "error:not in /sys"},
		{name: "USER of a link out", file: "RUN rm /etc/passwd; ln -s CANARY/secret /etc/passwd\nUSER plain\nRUN id", want: "error:plain|exit"},
		{name: "passwd that is endless", file: "RUN rm /etc/passwd; ln -s /dev/zero /etc/passwd\nUSER plain\nRUN id", want: "error:"},
		{name: "passwd that is a fifo", file: "RUN rm /etc/passwd; busybox mkfifo /etc/passwd\nUSER plain\nRUN id", want: "error:"},
		{name: "ignore file is a link out", file: "COPY . /n", ctx: map[string]string{".dockerignore@": "CANARY/secret"}, want: "|error:"},
		{name: "ignore file of long patterns", file: "COPY . /n", ctx: map[string]string{".dockerignore": strings.Repeat("**/", 200) + "a\n" + strings.Repeat("*a", 200) + "\n", strings.Repeat("a", 200): ""}, want: "|error:"},
		{name: "ignore file of many lines", file: "COPY . /n", ctx: map[string]string{".dockerignore": strings.Repeat("!x*y*z\n", 5000)}, want: "|error:"},
		{name: "ignore file that brings secrets back", file: "COPY . /n\nRUN ! ls /n/l/secret", ctx: map[string]string{".dockerignore": "*\n!l/secret\n!l\n", "l@": "CANARY"}},
		{name: "Dockerfile is a link out", ctx: map[string]string{"Dockerfile@": "CANARY/Dockerfile"}, want: "error:"},
		{name: "Dockerfile is a directory", ctx: map[string]string{"Dockerfile/x": ""}, want: "error:"},
		add("dots", "error:|", tar.Header{Name: "../../../../tmp/evil", Typeflag: reg}),
		add("absolute", "|error:", tar.Header{Name: "/tmp/evil", Typeflag: reg}),
		add("through a link", "|error:", tar.Header{Name: "l", Typeflag: link, Linkname: "/tmp"}, tar.Header{Name: "l/evil", Typeflag: reg}),
		add("link to dots", "|error:", tar.Header{Name: "l", Typeflag: link, Linkname: "../../../../../../tmp"}, tar.Header{Name: "l/evil", Typeflag: reg}),
		add("hard link out", "error:|", tar.Header{Name: "h", Typeflag: hard, Linkname: "../../../../../../etc/hostname"}),
		add("hard link through a link", "error:|", tar.Header{Name: "l", Typeflag: link, Linkname: "/etc"}, tar.Header{Name: "h", Typeflag: hard, Linkname: "l/passwd"}),
		add("device", "|error:", tar.Header{Name: "d", Typeflag: tar.TypeBlock, Devmajor: 254, Devminor: 0}),
		add("whiteout", "error:|", tar.Header{Name: ".wh.passwd", Typeflag: reg}),
		add("opaque", "error:|", tar.Header{Name: "etc/", Typeflag: dir}, tar.Header{Name: "etc/.wh..wh..opq", Typeflag: reg}),
		add("file and directory", "|error:", tar.Header{Name: "f", Typeflag: reg}, tar.Header{Name: "f/g", Typeflag: reg}),
		{name: "archive: bomb", file: "ADD a.tgz /x/", data: map[string][]byte{"a.tgz": bomb(150 << 20)}, want: "error:", slow: true},
		{name: "archive: cut off", file: "ADD a.tgz /x/", data: map[string][]byte{"a.tgz": bomb(1 << 20)[:600]}, want: "error:"},
		{name: "whiteout by RUN", file: "RUN touch /etc/.wh.passwd", want: "error:.wh."},
		{name: "device 0:0", file: "RUN busybox mknod /etc/zero c 0 0", want: "|exit|error:"},
		{name: "name with a line break", file: "RUN touch \"$(printf '/a\\nFROM scratch')\"\nFROM busybox\nCOPY --from=0 /a* /n/\nRUN ls /n"},
		{name: "name with control characters", file: "RUN touch \"$(printf '/\\033[2J\\001\\377')\"; ls / | wc -l"},
		{name: "long names", file: "RUN touch /" + strings.Repeat("x", 255) + " && ! touch /" + strings.Repeat("x", 256)},
		{name: "setuid file", file: "RUN cp /bin/busybox /suid && chmod 6755 /suid"},
		{name: "owner beyond the layers", file: "RUN chown 70000:70000 /etc/passwd", want: "exit"},
		{name: "script of a heredoc is a link out", file: "RUN rm -rf /.naru-heredoc; ln -s CANARY /.naru-heredoc\nRUN <<E\n#!/bin/sh\necho ran\nE", out: "ran"},
		{name: "stub is a link out", file: "RUN rm -rf /etc; ln -s CANARY /etc\nRUN true", want: "|exit|error:"},
		{name: "/proc of the image is a link", file: "FROM scratch AS a\nFROM busybox\nRUN rm -rf /sys; ln -s CANARY /sys\nRUN true", want: "|exit|error:"},
	}
}

func hostileMounts() []hostileCase {
	return []hostileCase{
		{name: "mount: source of dots", file: "RUN --mount=source=../canary,target=/x cat /x/secret", want: "error:not in the build context"},
		{name: "mount: source is a link out", file: "RUN --mount=source=l,target=/x cat /x/secret", ctx: map[string]string{"l@": "CANARY"}, want: "error:not in the build context"},
		{name: "mount: source of a stage is a link out", file: "RUN ln -s CANARY /l\nFROM busybox\nRUN --mount=from=0,source=/l,target=/x,rw touch /x/evil", want: "error:no such file"},
		{name: "mount: source of a stage is a magic link", file: "RUN ln -s /proc/self/root /l\nFROM busybox\nRUN --mount=from=0,source=/l,target=/x ls /x", want: "error:"},
		{name: "mount: link below the source", file: "RUN --mount=source=d,target=/x ! cat /x/l/secret", ctx: map[string]string{"d/l@": "CANARY"}},
		{name: "mount: target of dots", file: "RUN --mount=type=tmpfs,target=/../../CANARY/dir touch CANARY/dir/evil"},
		{name: "mount: target through a link", file: "RUN ln -s CANARY /l\nRUN --mount=type=tmpfs,target=/l/dir touch /l/dir/evil"},
		{name: "mount: target is swapped", file: "RUN --mount=type=tmpfs,target=/a/b/c (busybox umount /a/b/c; mv /a /z; ln -s CANARY /a) 2>/dev/null; true"},
		{name: "mount: stub becomes a link", file: "RUN --mount=type=tmpfs,target=/a/dir busybox mv /a /b; ln -s CANARY /a; true"},
		{name: "mount: stub of a file becomes a link", file: "RUN --mount=type=secret,id=token,target=/a/secret mv /a /b; ln -s CANARY /a; true"},
		{name: "mount: writes of a bind", file: "RUN --mount=target=/x,rw echo evil > /x/Dockerfile; rm -rf /x/*\nRUN --mount=target=/x grep FROM /x/Dockerfile"},
		{name: "mount: remount of a bind", file: "RUN --mount=target=/x ! mount -o remount,rw /x && ! touch /x/evil"},
		{name: "mount: cache id of dots", file: "RUN --mount=type=cache,target=/c,id=../../../../../../CANARY touch /c/evil"},
		{name: "mount: cache id of a line break", file: "ARG ID=\"a\\nb/../c\"\nRUN --mount=type=cache,target=/c,id=$ID touch /c/evil"},
		{name: "mount: cache full of links", file: "RUN --mount=type=cache,target=/c,id=links rm -rf /c/*; ln -s CANARY /c/l\nRUN --mount=type=cache,target=/c/l/dir --mount=type=cache,target=/c,id=links true", want: "|error:|exit"},
		{name: "mount: cache whose root is removed", file: "RUN --mount=type=cache,target=/c,id=root rm -rf /c; chmod 0 /c; chown 1:1 /c\nRUN --mount=type=cache,target=/c,id=root touch /c/f"},
		{name: "mount: cache with setuid and device", file: "RUN --mount=type=cache,target=/c,id=suid cp /bin/busybox /c/b && chmod 4755 /c/b && ! busybox mknod /c/d b 254 0"},
		{name: "mount: cache of another owner", file: "RUN --mount=type=cache,target=/c,id=links test ! -e /c/l", o: func(o *build.Options) { o.Owner = "victim" }},
		{name: "mount: secret over passwd", file: "RUN --mount=type=secret,id=token,target=/etc/passwd true\nRUN grep plain /etc/passwd", out: "plain"},
		{name: "mount: secret by dots", file: "RUN --mount=type=secret,id=../../CANARY/secret,target=/s test ! -e /s"},
		{name: "mount: secret is printed", file: "RUN --mount=type=secret,id=token cat /run/secrets/token; cat /run/secrets/token | busybox fold -w 3 | busybox tr -d '\\n'", out: `\*\*\*`},
		{name: "mount: secret is printed in two writes", file: "RUN --mount=type=secret,id=token,env=T printf %s hush-; sleep 0.05; printf '%s\\n' \"${T#hush-}\"", out: `\*\*\*`},
		{name: "mount: secret in the error", file: "RUN --mount=type=secret,id=token,env=T echo $T; exit 3", want: "exit"},
		{name: "mount: secret of another step", file: "RUN --mount=type=secret,id=token true\nRUN ! cat /run/secrets/token && ! busybox env | grep hush"},
		{name: "mount: on /proc", file: "RUN --mount=type=tmpfs,target=/proc true", want: "error:not in /proc"},
		{name: "mount: on a file of /proc", file: "RUN --mount=target=/proc/sys/kernel true", want: "error:not in /proc"},
		{name: "mount: on /", file: "RUN --mount=type=cache,target=/ true", want: "error:target /"},
		{name: "mount: on the step's hosts file", file: "RUN --mount=source=h,target=/etc/hosts cat /etc/hosts", ctx: map[string]string{"h": "192.0.2.1 evil\n"}},
		{name: "mount: hundreds", file: "RUN " + strings.Repeat("--mount=type=tmpfs,target=/m/N ", 1) + manyMounts(120) + "true", want: "|error:"},
	}
}

func manyMounts(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString("--mount=type=tmpfs,target=/m/" + strings.Repeat("x", i+1) + " ")
	}
	return b.String()
}

func hostileKernel() []hostileCase {
	var list []hostileCase
	for name, probe := range map[string]string{
		"mount":                    "! mount -t tmpfs x /tmp",
		"bind mount":               "! mount --bind / /tmp",
		"unmount":                  "! busybox umount /proc && ! busybox umount -l /etc/hosts",
		"mount namespace":          "! busybox unshare -m true",
		"user namespace":           "! busybox unshare -U true",
		"chroot escape":            "mkdir /x && ! busybox chroot /x/../.. ls CANARY",
		"root of init":             "! ls /proc/1/root/CANARY && ! ls /proc/1/cwd/../../../CANARY",
		"inherited descriptors":    "! busybox readlink /proc/self/fd/3 || test \"$(ls /proc/self/fd | busybox tail -n 1)\" -le 3",
		"descriptors of init":      "! busybox readlink /proc/1/fd/* | grep -v -e pipe -e /dev/null -e fifo -e std | grep /",
		"keyring":                  "test ! -s /proc/keys",
		"kernel memory":            "test ! -s /proc/kcore && ! head -c 1 /dev/mem && ! head -c 1 /dev/kmem",
		"disks":                    "! ls /dev/vda /dev/sda /dev/loop0 /dev/nvme0n1",
		"device nodes":             "! busybox mknod /d b 254 0 || ! head -c 1 /d",
		"sysrq":                    "! sh -c 'echo b > /proc/sysrq-trigger'",
		"core pattern":             "! sh -c 'echo x > /proc/sys/kernel/core_pattern'",
		"kernel settings":          "! sh -c 'echo 1 > /proc/sys/vm/drop_caches' && ! sh -c 'echo 0 > /proc/sys/kernel/randomize_va_space'",
		"settings in /sys":         "! sh -c 'echo 1 > /sys/kernel/profiling' && ! mkdir /sys/x",
		"modules":                  "! busybox insmod /bin/busybox && ! busybox modprobe dummy",
		"kernel log":               "! busybox dmesg",
		"clock":                    "was=$(date +%Y); date -s 2001-01-01; test $(date +%Y) = $was",
		"reboot":                   "! busybox reboot -f",
		"swap":                     "! busybox swapoff -a && ! busybox swapon /bin/busybox",
		"host name":                "! hostname evil",
		"priorities":               "! busybox nice -n -20 true 2>/dev/null || true",
		"oom score":                "! sh -c 'echo -1000 > /proc/self/oom_score_adj'",
		"resource limits":          "! ulimit -Hn 100000000",
		"cgroups":                  "! mkdir /sys/fs/cgroup/x && ! sh -c 'echo 0 > /sys/fs/cgroup/cgroup.procs'",
		"release agent":            "! sh -c 'for f in /sys/fs/cgroup/release_agent /sys/fs/cgroup/*/release_agent; do echo /evil > $f && exit 0; done; exit 1'",
		"processes of the host":    "test $(ls -d /proc/[0-9]* | grep -c .) -lt 10",
		"the agent's files":        "! ls CANARY/../../root",
		"no socket of an engine":   "! ls /var/run/docker.sock /run/docker.sock /run/containerd /run/naru",
		"environment of the agent": "! busybox env | grep -e NARU -e SSH_AUTH",
	} {
		list = append(list, hostileCase{name: "kernel: " + name, file: "RUN " + probe})
	}
	return list
}

func hostileNetwork() []hostileCase {
	wget := func(name, url string) hostileCase {
		return hostileCase{name: "network: " + name, file: "RUN ! wget -T 1 -O - " + url}
	}
	self := "RUN --mount=target=/src cp /src/self /self && "
	return []hostileCase{
		wget("metadata service", "http://169.254.169.254/latest/meta-data/"),
		wget("service of the host, by the gateway", "http://GATEWAY:8088/"),
		wget("service of the host, by its address", "http://192.0.2.2:8088/"),
		wget("service of the host, on loopback", "http://127.0.0.1:8088/"),
		wget("service of the host, by IPv6", "http://[::1]:8089/"),
		wget("another container", "http://APP/"),
		{name: "network: flood of the host", file: self + hostileFlood + "=GATEWAY:9 /self", out: "sent true", slow: true},
		{name: "network: flood of the neighbours", file: self + hostileFlood + "=$(echo GATEWAY | busybox sed 's/[0-9]*$/77/'):9 /self", out: "sent", slow: true},
		{name: "network: flood of another container", file: self + hostileFlood + "=$(echo APP | busybox sed 's/:.*//'):9 /self", out: "sent", slow: true},
		{name: "network: another address", file: "RUN ! busybox ip addr add 192.0.2.99/24 dev eth0 && ! busybox ip route add default via GATEWAY metric 1"},
		{name: "network: raw packets", file: "RUN ! busybox arping -c 1 -w 1 GATEWAY 2>/dev/null"},
		{name: "network: none", file: "RUN --network=none ! wget -T 1 -O - http://GATEWAY:8088/"},
		{name: "network: host", file: "RUN --network=host wget -O - http://127.0.0.1:8088/", want: "error:--allow network.host"},
		{name: "network: insecure", file: "RUN --security=insecure true", want: "error:--security=insecure"},
	}
}

func hostileText() []hostileCase {
	doubling := "ARG A=0123456789abcdef\n"
	for range 40 {
		doubling += "ARG A=$A$A\n"
	}
	return []hostileCase{
		{name: "log of 20 MB", file: "RUN busybox yes 0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789 | head -c 20000000", slow: true},
		{name: "log without line breaks", file: "RUN head -c 20000000 /dev/zero", slow: true},
		{name: "log of binary data", file: "RUN head -c 100000 /dev/urandom; echo; echo end", out: "end"},
		{name: "log that goes on for ever", file: "RUN busybox yes", o: soon, want: "time"},
		{name: "variable that doubles", file: doubling + "RUN true", want: "error:bytes with its variables"},
		{name: "environment that doubles", file: strings.ReplaceAll(doubling, "ARG ", "ENV ") + "RUN true", want: "error:bytes with its variables"},
		{name: "variables in a row", file: "ENV A=" + strings.Repeat("x", 60000) + "\nENV B=" + strings.Repeat("$A", 20000) + "\nRUN true", want: "error:bytes with its variables"},
		{name: "replacement that multiplies", file: "ENV A=" + strings.Repeat("x", 60000) + "\nENV B=${A//x/$A}\nRUN true", want: "error:bytes with its variables"},
		{name: "long values without end", file: "ENV A=" + strings.Repeat("x", 60000) + "\n" + strings.Repeat("LABEL l=$A\n", 3000) + "RUN true", want: "error:all words together"},
		{name: "long line", file: "RUN echo " + strings.Repeat("x", 60000) + " > /dev/null"},
		{name: "line longer than a line may be", file: "RUN echo " + strings.Repeat("x", 70000), want: "error:"},
		{name: "thousands of instructions", file: strings.Repeat("LABEL a=b\n", 3000)},
		{name: "stages that need each other", file: "FROM b AS a\nFROM a AS b\nCOPY --from=b / /", want: "error:"},
		{name: "stage that needs itself", file: "FROM busybox AS a\nCOPY --from=a / /x", want: "error:before this one"},
		{name: "frontend of a stranger", ctx: map[string]string{"Dockerfile": "# syntax=evil.test/frontend:1\nFROM busybox\nRUN true\n"}},
		{name: "Dockerfile of binary data", data: map[string][]byte{"Dockerfile": []byte("\x7fELF\x00\x01\x02")}, want: "error:"},
		{name: "Dockerfile that is empty", data: map[string][]byte{"Dockerfile": nil}, want: "error:"},
	}
}
