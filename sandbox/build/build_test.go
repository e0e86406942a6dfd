package build

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"naru/sandbox/image"
)

type buildCase struct {
	name   string
	file   string            // Dockerfile
	ctx    map[string]string // context
	opts   Options
	want   map[string]string // path → look
	config func(image.Config) any
	equals string // what config returns, as JSON
	err    string // part of the error; then nothing else counts
	log    string // part of the log
}

func runCases(t *testing.T, cases []buildCase) {
	w := newWorld(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			w.t = t
			files := map[string]string{"Dockerfile": c.file}
			for k, v := range c.ctx {
				files[k] = v
			}
			c.opts.Context = w.context(files)
			img, log, err := w.build(c.opts)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("error %v, want %q\n%s", err, c.err, log)
				}
				return
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, log)
			}
			for p, want := range c.want {
				if got := w.look(img, p); got != want {
					t.Errorf("%s: %q, want %q", p, got, want)
				}
			}
			if c.config != nil {
				got, err := json.Marshal(c.config(img.Config))
				if err != nil || string(got) != c.equals {
					t.Errorf("config %s, want %s (%v)", got, c.equals, err)
				}
			}
			if !strings.Contains(log, c.log) {
				t.Errorf("log has no %q:\n%s", c.log, log)
			}
			if t.Failed() {
				t.Log(log)
			}
		})
	}
}

func TestCopy(t *testing.T) {
	ctx := map[string]string{
		"a": "A", "b*": "B", "d/x": "X", "d/e/y": "Y", "d/l@link": "x", "top@link": "d/x",
	}
	runCases(t, []buildCase{
		{name: "file", file: "FROM base\nCOPY a /x/y/a2", ctx: ctx,
			want: map[string]string{"x": "d 755 0:0", "x/y": "d 755 0:0", "x/y/a2": "f 644 0:0 A"}},
		{name: "into existing directory", file: "FROM base\nCOPY b /tmp", ctx: ctx,
			want: map[string]string{"tmp": "d 1777 0:0", "tmp/b": "f 755 0:0 B"}},
		{name: "into new directory", file: "FROM scratch\nCOPY a b /n/", ctx: ctx,
			want: map[string]string{"n": "d 755 0:0", "n/a": "f 644 0:0 A", "n/b": "f 755 0:0 B", "": "d 755 0:0"}},
		{name: "several without slash", file: "FROM base\nCOPY a b /n", ctx: ctx,
			want: map[string]string{"n": "f 755 0:0 B"}, log: "WARNING: 2 files for /n, of which the last one stays"},
		{name: "directory content", file: "FROM base\nCOPY d /n", ctx: ctx,
			want: map[string]string{"n/x": "f 644 0:0 X", "n/e/y": "f 644 0:0 Y", "n/l": "l x", "n/d": "-"}},
		{name: "wildcard", file: "FROM base\nCOPY d/*/y [ab] /n/", ctx: ctx,
			want: map[string]string{"n/y": "f 644 0:0 Y", "n/a": "f 644 0:0 A", "n/b": "f 755 0:0 B"}},
		{name: "wildcard without match", file: "FROM base\nCOPY a nothing* /n/", ctx: ctx,
			want: map[string]string{"n/a": "f 644 0:0 A"}, log: `nothing matches "nothing*"`},
		{name: "missing", file: "FROM base\n\nCOPY gone /n/", ctx: ctx, err: `Dockerfile:3: COPY: "gone" is not in the build context`},
		{name: "link argument is followed", file: "FROM base\nCOPY top /n/", ctx: ctx, want: map[string]string{"n/top": "f 644 0:0 X"}},
		{name: "through link of the image", file: "FROM base\nCOPY a /lib/a\nCOPY d /lib/", ctx: ctx,
			want: map[string]string{"lib": "l usr/lib", "usr/lib/a": "f 644 0:0 A", "usr/lib/e/y": "f 644 0:0 Y"}},
		{name: "workdir and relative", file: "FROM base\nWORKDIR /w\nWORKDIR v\nCOPY a .\nCOPY b ./c/", ctx: ctx,
			want: map[string]string{"w/v/a": "f 644 0:0 A", "w/v/c/b": "f 755 0:0 B"}},
		{name: "chown name", file: "FROM base\nCOPY --chown=app a /n/\nCOPY --chown=app:staff b /n/\nCOPY --chown=5 a /m/", ctx: ctx,
			want: map[string]string{"n": "d 755 1000:1001", "n/a": "f 644 1000:1001 A", "n/b": "f 755 1000:50 B", "m/a": "f 644 5:5 A"}},
		{name: "chown unknown user", file: "FROM base\nCOPY --chown=nobody a /n/", ctx: ctx, err: `Dockerfile:2: COPY: --chown=nobody: unknown user "nobody"`},
		{name: "chown unknown group", file: "FROM base\nCOPY --chown=app:nogroup a /n/", ctx: ctx, err: `unknown group "nogroup"`},
		{name: "chown out of range", file: "FROM base\nCOPY --chown=far a /n/", ctx: ctx, err: `outside 0..65535`},
		{name: "chmod", file: "FROM base\nARG M=4750\nCOPY --chmod=$M a /n/\nCOPY --chmod=700 d /m/", ctx: ctx,
			want: map[string]string{"n/a": "f 4750 0:0 A", "m/e": "d 700 0:0", "m/x": "f 700 0:0 X"}},
		{name: "chmod that is none", file: "FROM base\nCOPY --chmod=u+q a /n/", ctx: ctx, err: "Dockerfile:2: COPY: --chmod=u+q: neither an octal mode"},
		{name: "chmod too large", file: "FROM base\nCOPY --chmod=17777 a /n/", ctx: ctx, err: "--chmod=17777: neither"},
		{name: "USER does not own copies", file: "FROM base\nUSER app\nCOPY a /n/", ctx: ctx, want: map[string]string{"n/a": "f 644 0:0 A"}},
		{name: "directory by file", file: "FROM base\nCOPY d /n/\nCOPY a /n/e", ctx: ctx, want: map[string]string{"n/e/a": "f 644 0:0 A"}},
		{name: "file by directory", file: "FROM base\nCOPY a /n/e\nCOPY d /n/", ctx: ctx, err: "cannot copy a directory to /n/e"},
		{name: "replaces link", file: "FROM base\nRUN mkdir /n && ln -s /etc/passwd /n/x\nCOPY d /n/", ctx: ctx,
			want: map[string]string{"n/x": "f 644 0:0 X"}},
		{name: "exclude", file: "FROM base\nCOPY --exclude=e --exclude=l d /n/", ctx: ctx,
			want: map[string]string{"n/x": "f 644 0:0 X", "n/e": "-", "n/l": "-"}},
		{name: "link flag hides link of the image", file: "FROM base\nCOPY --link a /lib/a", ctx: ctx,
			want: map[string]string{"lib": "d 755 0:0", "lib/a": "f 644 0:0 A"}},
		{name: "link flag with name", file: "FROM base\nCOPY --link --chown=app a /lib/a", ctx: ctx, err: "names cannot be resolved with --link"},
		{name: "heredoc", file: "FROM base\nENV V=v\nCOPY <<one <<\"two\" /n/\n$V 'q'\none\n$V\ntwo\n", ctx: ctx,
			want: map[string]string{"n/one": "f 644 0:0 v 'q'\n", "n/two": "f 644 0:0 $V\n"}},
		{name: "whiteout name", file: "FROM base\nCOPY .wh.a /n/", ctx: map[string]string{".wh.a": ""}, err: "names that begin with .wh."},
	})
}

func TestCopyFrom(t *testing.T) {
	runCases(t, []buildCase{
		{name: "stage by name and index", file: `FROM base AS One
RUN echo 1 >/1 && chown 3:4 /1 && mkdir /dir && echo x >/dir/x
FROM base
RUN echo 2 >/2
FROM scratch
COPY --from=one /1 /dir /o/
COPY --from=1 /2 /two`,
			want: map[string]string{"o/1": "f 644 3:4 1\n", "o/x": "f 644 0:0 x\n", "two": "f 644 0:0 2\n", "bin": "-"}},
		{name: "image", file: "FROM scratch\nCOPY --from=base /owned /o", want: map[string]string{"o": "f 4755 7:8 owned"}},
		{name: "from stage inherits", file: `FROM base AS a
ARG X=arg
ENV E=env
WORKDIR /w
USER app
FROM a
RUN echo $X $E $(pwd) $(id -u) >/tmp/o`,
			want:   map[string]string{"tmp/o": "f 644 1000:1001 arg env /w 1000\n", "w": "d 755 0:0"},
			config: func(c image.Config) any { return []any{c.Config.WorkingDir, c.Config.User} }, equals: `["/w","app"]`},
		{name: "forward", file: "FROM base\nCOPY --from=late /x /x\nFROM base AS late", opts: Options{Target: "0"}, err: "Dockerfile:2: COPY --from=late: that stage must come before"},
		{name: "itself", file: "FROM base AS me\nCOPY --from=me /x /x", err: "Dockerfile:2"},
		{name: "variable", file: "FROM base\nARG S=a\nCOPY --from=$S /x /x", err: "Dockerfile:3: COPY --from takes no variables"},
		{name: "index", file: "FROM base\nCOPY --from=7 /x /x", err: "Dockerfile:2: COPY --from=7: there are 1 stages"},
		{name: "only what is needed", file: `FROM base AS broken
RUN false
FROM nosuchimage:none AS gone
FROM base AS good
RUN echo ok >/ok
FROM broken AS last`,
			opts: Options{Target: "GOOD"}, want: map[string]string{"ok": "f 644 0:0 ok\n"}},
		{name: "no target", file: "FROM base", opts: Options{Target: "x"}, err: `there is no stage "x"`},
		{name: "missing in stage", file: "FROM base AS a\nFROM base\nCOPY --from=a /nope /", err: "Dockerfile:3: COPY: stat /nope: no such file"},
	})
}

func TestIgnore(t *testing.T) {
	ctx := map[string]string{
		"keep": "K", "drop": "D", "node/a": "1", "node/sub/keep.txt": "2", "logs/x.log": "L",
		".dockerignore": "# comment\n\ndrop\nnode\n!node/sub/keep.txt\n**/*.log\n",
	}
	with := func(name, data string) map[string]string {
		m := map[string]string{name: data}
		for k, v := range ctx {
			m[k] = v
		}
		return m
	}
	runCases(t, []buildCase{
		{name: "all", file: "FROM scratch\nCOPY . /n/", ctx: ctx, want: map[string]string{
			"n/keep": "f 644 0:0 K", "n/drop": "-", "n/node/a": "-", "n/node/sub/keep.txt": "f 644 0:0 2", "n/logs": "d 755 0:0", "n/logs/x.log": "-"}},
		{name: "names the line", file: "FROM scratch\nCOPY drop /n/", ctx: ctx, err: `"drop" is excluded by .dockerignore line 3`},
		{name: "wildcard does not see", file: "FROM scratch\nCOPY d* k* /n/", ctx: ctx, want: map[string]string{"n/keep": "f 644 0:0 K", "n/drop": "-"}},
		{name: "link to ignored", file: "FROM scratch\nCOPY l /n/", ctx: with("l@link", "drop"), err: `excluded by .dockerignore line 3`},
		{name: "own file of the Dockerfile", file: "FROM scratch\nCOPY . /n/", ctx: with("Dockerfile.dockerignore", "keep\n"),
			want: map[string]string{"n/keep": "-", "n/drop": "f 644 0:0 D"}},
	})
}

func TestRun(t *testing.T) {
	runCases(t, []buildCase{
		{name: "shell and exec", file: "FROM base\nRUN echo \"$BASE $HOME\" >/o && rm /owned\nRUN [\"touch\", \"/a b\"]",
			want: map[string]string{"o": "f 644 0:0 yes /root\n", "owned": "-", "a b": "f 644 0:0"}},
		{name: "no mount points left", file: "FROM base\nRUN echo x >/x", want: map[string]string{
			"etc/resolv.conf": "-", "dev": "-", "sys": "-", "proc": "d 555 0:0"}},
		{name: "shell instruction", file: "FROM base\nSHELL [\"/bin/busybox\", \"echo\"]\nRUN hello\nCMD x y", log: "hello",
			config: func(c image.Config) any { return c.Config.Cmd }, equals: `["/bin/busybox","echo","x y"]`},
		{name: "failure", file: "FROM base\nRUN echo out; echo err >&2; \\\n exit 3", err: "Dockerfile:2: RUN echo out; echo err >&2;  exit 3: exit code 3"},
		{name: "user", file: "FROM base\nUSER app\nWORKDIR /w\nRUN id -u >o", want: map[string]string{"w": "d 755 1000:1001", "w/o": "f 644 1000:1001 1000\n"}},
		{name: "workdir exists", file: "FROM base\nUSER app\nWORKDIR /tmp\nRUN pwd >o", want: map[string]string{"tmp": "d 1777 0:0", "tmp/o": "f 644 1000:1001 /tmp\n"}},
		{name: "workdir unknown user", file: "FROM base\nUSER ghost\nWORKDIR /w", err: `Dockerfile:3: WORKDIR: unknown user "ghost"`},
		{name: "workdir through link", file: "FROM base\nWORKDIR /escape/in", want: map[string]string{"tmp/in": "d 755 0:0"}},
		{name: "workdir in proc", file: "FROM base\nWORKDIR /proc/self/fd/7", err: "Dockerfile:2: WORKDIR /proc/self/fd/7: not in /proc"},
		{name: "heredoc", file: "FROM base\nRUN <<EOF\necho one >/o\necho two >>/o\nEOF\n", want: map[string]string{"o": "f 644 0:0 one\ntwo\n"}},
		{name: "heredoc to command", file: "FROM base\nRUN cat <<A >/a && cat <<B >/b\nx\nA\ny\nB\n", want: map[string]string{"a": "f 644 0:0 x\n", "b": "f 644 0:0 y\n"}},
		{name: "heredoc script", file: "FROM base\nRUN <<EOF\n#!/bin/busybox sh\necho $0 >/o\nEOF\n",
			want: map[string]string{"o": "f 644 0:0 /.naru-heredoc/script\n", ".naru-heredoc": "-"}},
		{name: "whiteout of the step's", file: "FROM base\nRUN rm -r /usr && mkdir /usr && touch /usr/new", want: map[string]string{"usr/lib": "-", "usr/new": "f 644 0:0"}},
		{name: "root directory", file: "FROM base\nRUN chmod 711 /\nRUN touch /x", want: map[string]string{"": "d 711 0:0"}},
		{name: "proxy", file: "FROM base\nRUN env >/o", opts: Options{Args: map[string]string{"http_proxy": "http://p"}},
			config: func(c image.Config) any { return strings.Contains(c.History[len(c.History)-1].CreatedBy, "http://p") }, equals: "false"},
		{name: "network none", file: "FROM base\nRUN --network=none true"},
		{name: "network host", file: "FROM base\nRUN --network=host true", err: "Dockerfile:2: RUN --network=host"},
	})
}

func TestStepError(t *testing.T) {
	w := newWorld(t)
	dir := w.context(map[string]string{"sub/Df": "FROM base\n\nRUN seq 1 30; printf last; exit 7\n"})
	_, log, err := w.build(Options{Context: dir, Dockerfile: "sub/Df"})
	var failed *StepError
	if !errors.As(err, &failed) {
		t.Fatalf("%v\n%s", err, log)
	}
	if failed.File != "sub/Df" || failed.Line != 3 || failed.Code != 7 || failed.Instruction != "RUN seq 1 30; printf last; exit 7" {
		t.Errorf("%+v", failed)
	}
	if n := len(failed.Tail); n != 20 || failed.Tail[0] != "12" || failed.Tail[19] != "last" {
		t.Errorf("tail %q", failed.Tail)
	}
	if !strings.Contains(log, "#4 [2/2] RUN seq 1 30") || !strings.Contains(log, " 30\n") || !strings.Contains(log, "#4 ERROR") {
		t.Errorf("log:\n%s", log)
	}
}

func TestConfig(t *testing.T) {
	all := func(c image.Config) any { return c.Config }
	runCases(t, []buildCase{
		{name: "everything", file: `FROM base
ENV A=1 B=$A C="x y"
ENV A=2 D=$A
LABEL l=$A "m n"=o
EXPOSE 80 443/TCP 9000-9001/udp
VOLUME /v $A
USER app:staff
STOPSIGNAL sigquit
HEALTHCHECK --interval=5s --timeout=2s --start-period=1m --start-interval=3s --retries=4 CMD ["check", "x"]
SHELL ["/bin/ash", "-c"]
ENTRYPOINT ["/run", "me"]
CMD args $A`,
			config: all, equals: `{"User":"app:staff","ExposedPorts":{"443/tcp":{},"80/tcp":{},"9000/udp":{},"9001/udp":{}},` +
				`"Env":["BASE=yes","PATH=` + defaultPath + `","A=2","B=","C=x y","D=1"],"Entrypoint":["/run","me"],"Cmd":["/bin/ash","-c","args $A"],` +
				`"Volumes":{"/v":{},"2":{}},"Labels":{"base":"1","l":"2","m n":"o"},"StopSignal":"sigquit","ArgsEscaped":true,` +
				`"Healthcheck":{"Test":["CMD","check","x"],"Interval":5000000000,"Timeout":2000000000,"StartPeriod":60000000000,"StartInterval":3000000000,"Retries":4},` +
				`"Shell":["/bin/ash","-c"]}`},
		{name: "entrypoint clears inherited command", file: "FROM base\nENTRYPOINT x",
			config: func(c image.Config) any { return []any{c.Config.Entrypoint, c.Config.Cmd} }, equals: `[["/bin/sh","-c","x"],null]`},
		{name: "entrypoint keeps command of the stage", file: "FROM base\nCMD [\"a\"]\nENTRYPOINT [\"x\"]",
			config: func(c image.Config) any { return c.Config.Cmd }, equals: `["a"]`},
		{name: "history without values", file: "FROM base\nARG TOKEN=deflt\nMAINTAINER me\nRUN echo $TOKEN >/tmp/x\nCOPY $TOKEN /x", ctx: map[string]string{"s3cret": "f"},
			opts: Options{Args: map[string]string{"TOKEN": "s3cret"}, Labels: map[string]string{"x": "y"}},
			config: func(c image.Config) any {
				var l []any
				for _, h := range c.History[len(c.History)-4:] {
					l = append(l, h.CreatedBy, h.EmptyLayer)
				}
				return append(l, c.Author, c.Config.Labels["x"])
			},
			equals: `["ARG TOKEN",true,"MAINTAINER me",true,"RUN /bin/sh -c echo $TOKEN \u003e/tmp/x",false,"COPY $TOKEN /x",false,"me","y"]`},
		{name: "bad signal", file: "FROM base\nSTOPSIGNAL SIGNOPE", err: "Dockerfile:2: STOPSIGNAL: there is no signal"},
		{name: "bad port", file: "FROM base\nEXPOSE 99999", err: `Dockerfile:2: EXPOSE: invalid port "99999"`},
		{name: "unknown instruction", file: "FROM base\n\nFOO bar", err: "Dockerfile:3: unknown instruction: FOO"},
		{name: "no stage", file: "ARG x", err: "Dockerfile has no FROM"},
		{name: "unused argument", file: "FROM base", opts: Options{Args: map[string]string{"TPYO": "1"}}, log: "build arguments that no ARG declares: TPYO"},
	})
}

func TestArgs(t *testing.T) {
	out := func(c image.Config) any { return c.Config.Labels["o"] }
	runCases(t, []buildCase{
		{name: "global in FROM", file: "ARG B=ba\nARG I=${B}se\nFROM $I\nLABEL o=$I", config: out, equals: `""`},
		{name: "inherited by declaration", file: "ARG V=g\nFROM base\nARG V\nLABEL o=$V", config: out, equals: `"g"`},
		{name: "default and option", file: "FROM base\nARG V=d\nARG W=d\nLABEL o=$V$W", opts: Options{Args: map[string]string{"V": "o"}}, config: out, equals: `"od"`},
		{name: "ENV after ARG wins", file: "FROM base\nARG V=a\nENV V=e\nLABEL o=$V", config: out, equals: `"e"`},
		{name: "ARG after ENV wins", file: "FROM base\nENV V=e\nARG V=a\nLABEL o=$V", config: out, equals: `"a"`},
		{name: "scope ends with the stage", file: "FROM base AS x\nARG V=a\nFROM base\nLABEL o=${V:-none}", config: out, equals: `"none"`},
		{name: "undeclared option", file: "FROM base\nLABEL o=${V-unset}", opts: Options{Args: map[string]string{"V": "x"}}, config: out, equals: `"unset"`},
		{name: "required", file: "FROM base\nLABEL o=\"${V:?give V}\"", err: "give V"},
		{name: "platform needs declaration", file: "FROM --platform=$BUILDPLATFORM base\nARG TARGETOS\nLABEL o=$TARGETOS-$TARGETARCH", config: out, equals: `"linux-"`},
		{name: "platform overridden", file: "FROM base\nARG TARGETARCH\nLABEL o=$TARGETARCH", opts: Options{Args: map[string]string{"TARGETARCH": "z"}}, config: out, equals: `"z"`},
		{name: "foreign platform", file: "FROM --platform=linux/s390x base", err: "Dockerfile:1: base in the store is for linux/"},
		{name: "blank FROM", file: "ARG X\nFROM $X", err: "Dockerfile:2: base name ($X) should not be blank"},
		{name: "escape directive", file: "# escape=`\nFROM base\nLABEL o=a`\nb", config: out, equals: `"ab"`},
	})
}

func TestDockerfileStaysInContext(t *testing.T) {
	w := newWorld(t)
	dir := w.context(map[string]string{"Dockerfile@link": "/etc/passwd", "up@link": "../outside"})
	writeFile(t, filepath.Dir(dir), "outside", "FROM base\n")
	for _, name := range []string{"Dockerfile", "up", filepath.Join(dir, "up")} {
		if _, _, err := w.build(Options{Context: dir, Dockerfile: name}); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := w.build(Options{Context: dir, Dockerfile: "../outside"}); err == nil || !strings.Contains(err.Error(), "outside of the build context") {
		t.Error(err)
	}
	if _, _, err := w.build(Options{Context: dir, Dockerfile: filepath.Join(filepath.Dir(dir), "outside")}); err != nil {
		t.Error(err)
	}
}
