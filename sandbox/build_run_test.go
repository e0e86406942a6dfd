package sandbox

import (
	"errors"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"naru/sandbox/build"
)

// TestBuildRun: networks, users, variables and settings of RUN.
func TestBuildRun(t *testing.T) {
	e := newEngine(t)
	for name, c := range map[string]struct {
		file string // after FROM busybox
		o    build.Options
		want string
		err  string
	}{
		"no network":               {file: "RUN --network=none cat /proc/net/dev | grep -c : && ls /sys/class/net", want: " 1\n(?s:.*) lo\n"},
		"the build has none":       {file: "RUN --network=default ls /sys/class/net", want: " lo\n"},
		"host is asked for":        {file: "RUN --network=host true", err: "--allow network.host"},
		"host in an unused stage":  {file: "RUN --network=host true\nFROM busybox", want: ""},
		"insecure":                 {file: "RUN --security=insecure true", err: "RUN --security=insecure is not supported"},
		"user by name":             {file: "USER plain\nRUN id; echo home $HOME", want: `uid=1000\(plain\) gid=1000\(plain\) groups=1000\(plain\),2000\(extra\)(?s:.*)home /srv\n`},
		"user by number":           {file: "USER 1000\nRUN id; echo home $HOME", want: `uid=1000\(plain\) gid=1000\(plain\) groups=1000\(plain\),2000\(extra\)(?s:.*)home /srv\n`},
		"user with group":          {file: "USER plain:extra\nRUN id", want: `uid=1000\(plain\) gid=2000\(extra\)`},
		"user without an account":  {file: "USER 4321:4\nRUN id; echo home $HOME", want: `uid=4321 gid=4(?s:.*)home /\n`},
		"user that nobody knows":   {file: "USER nobody-knows\nRUN true", err: "nobody-knows"},
		"user beyond the layers":   {file: "USER 70000\nRUN true", err: "outside 0..65535"},
		"home by ENV":              {file: "ENV HOME=/x\nUSER plain\nRUN echo home $HOME", want: "home /x\n"},
		"proxy without ARG":        {file: "RUN echo $HTTP_PROXY $https_proxy", o: build.Options{Args: map[string]string{"http_proxy": "http://p:1", "HTTPS_PROXY": "http://q:2"}}, want: "http://p:1 http://q:2\n"},
		"names of hosts":           {file: "RUN cat /etc/hosts", o: build.Options{RunSettings: build.RunSettings{AddHosts: []string{"db.test:192.0.2.7"}}}, want: `192.0.2.7\s+db.test`},
		"name servers":             {file: "RUN cat /etc/resolv.conf", o: build.Options{RunSettings: build.RunSettings{DNS: []netip.Addr{netip.MustParseAddr("192.0.2.53")}, DNSSearch: []string{"in.test"}}}, want: `nameserver 192.0.2.53(?s:.*)search in.test`},
		"size of shm":              {file: "RUN grep /dev/shm /proc/mounts", o: build.Options{RunSettings: build.RunSettings{ShmSize: 3 << 20}}, want: "size=3072k"},
		"a limit":                  {file: "RUN ulimit -n", o: build.Options{RunSettings: build.RunSettings{Ulimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 77, Hard: 99}}}}, want: " 77\n"},
		"chroot and capabilities":  {file: "RUN busybox chroot / echo rooted; grep CapEff /proc/self/status", want: "rooted(?s:.*)CapEff"},
		"nothing of the host's":    {file: "RUN env | sort", want: `HOME=/root(?s:.*)PATH=`},
		"the exit code":            {file: "RUN exit 7", err: "Dockerfile:2: RUN exit 7: exit code 7"},
		"a signal":                 {file: "RUN sh -c 'kill -SEGV $$'; exit $?", err: "ended by signal SIGSEGV (exit code 139)"},
		"a missing program":        {file: `RUN ["missing"]`, err: "missing: "},
		"a script without its #!":  {file: "RUN <<E\n#!/no/such/interpreter\nE", err: "exit code 127"},
		"the time of a step":       {file: "RUN sleep 60", o: build.Options{StepTimeout: 300 * time.Millisecond}, err: "the step took longer than its time limit of 300ms"},
		"the time of the build":    {file: "RUN sleep 60", o: build.Options{Timeout: 300 * time.Millisecond}, err: "the build took longer than its time limit of 300ms"},
		"nobody is left behind":    {file: "RUN (busybox setsid sleep 600 &) ; sleep 600 & echo gone", want: "gone"},
		"output without an end":    {file: "RUN printf abc; printf def >&2", want: "abcdef|defabc"},
		"all of a megabyte of log": {file: "RUN yes 0123456789012345678901234567890123456789012345678901234567890123 | head -n 20000; echo last", want: " last\n"},
	} {
		t.Run(name, func(t *testing.T) {
			o := c.o
			o.Context, o.NoCache = writeContext(t, map[string]string{"Dockerfile": "FROM busybox\n" + c.file}), true
			_, log, err := buildIn(t, e, o)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want %q\n%s", err, c.err, log)
				}
				return
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, log)
			}
			if ok, _ := regexp.MatchString(c.want, log); !ok {
				t.Errorf("output %s\nwant %s", log, c.want)
			}
			if n := strings.Count(log, " 01234567890"); strings.Contains(c.file, "20000") && n != 20001 { // and the title
				t.Errorf("%d lines came", n)
			}
		})
	}
	checkNothingLeft(t, e)
}

// TestBuildStepReasons: limits end a step for the reason that they are.
func TestBuildStepReasons(t *testing.T) {
	e := newEngine(t)
	for name, c := range map[string]struct {
		run  string
		o    build.Options
		want build.Reason
	}{
		"memory":            {"busybox tail /dev/zero", build.Options{Memory: 32 << 20}, build.ReasonMemory},
		"memory of a tmpfs": {"dd if=/dev/zero of=/dev/shm/x bs=1M count=60", build.Options{Memory: 32 << 20}, build.ReasonMemory},
		"processes":         {"i=0; while [ $i -lt 60 ]; do sleep 60 & i=$((i+1)); done; echo all; exit 1", build.Options{Pids: 20}, build.ReasonPids},
		"disk":              {"dd if=/dev/zero of=/x bs=1M count=400; sleep 60", build.Options{Disk: 64 << 20}, build.ReasonDisk},
		"disk in a cache":   {"--mount=type=cache,target=/c dd if=/dev/zero of=/c/x bs=1M count=400; sleep 60", build.Options{Disk: 64 << 20}, build.ReasonDisk},
		"disk without name": {"exec 3>/x; rm /x; dd if=/dev/zero bs=1M count=400 >&3; sleep 60", build.Options{Disk: 64 << 20}, build.ReasonDisk},
		"files":             {"mkdir /d; cd /d; seq 1 200000 | busybox xargs touch; sleep 60", build.Options{Inodes: 2000}, build.ReasonInodes},
		"sparse is free":    {"busybox truncate -s 100G /x; exit 3", build.Options{Disk: 64 << 20}, build.ReasonExit},
	} {
		t.Run(name, func(t *testing.T) {
			o := c.o
			o.Context, o.NoCache, o.Timeout = writeContext(t, map[string]string{"Dockerfile": "FROM busybox\nRUN " + c.run + "\n"}), true, time.Minute
			_, log, err := buildIn(t, e, o)
			failed := (*build.StepError)(nil)
			if !errors.As(err, &failed) || failed.Reason != c.want {
				t.Errorf("%v (%+v), want %s\n%s", err, failed, c.want, log)
			}
			t.Log(err)
		})
	}
	checkNothingLeft(t, e)
}
