package build

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"naru/sandbox/image"
)

// TestModifiers: each form that a variable can have in a word.
func TestModifiers(t *testing.T) {
	w := newWorld(t)
	var file strings.Builder
	file.WriteString("FROM base\nENV S=set E= P=/usr/local/lib/a.tar.gz D='a$b' W=aXbXc\n")
	table := [][2]string{
		{"$S-${S}", "set-set"}, {"$U", ""}, {`\$S`, "$S"}, {`'$S'`, "$S"}, {`"$S"`, "set"}, {"${S}x$Sx", "setx"},
		{"${S:-d}", "set"}, {"${E:-d}", "d"}, {"${U:-d}", "d"}, {"${S-d}", "set"}, {"${E-d}", ""}, {"${U-d}", "d"},
		{"${S:+d}", "d"}, {"${E:+d}", ""}, {"${U:+d}", ""}, {"${S+d}", "d"}, {"${E+d}", "d"}, {"${U+d}", ""},
		{"${S:?m}", "set"}, {"${E?m}", ""}, {"${U:-${S}x}", "setx"}, {"${U:-a b}", "a b"}, {`${U:-"q"}`, "q"},
		{"${P#*/}", "usr/local/lib/a.tar.gz"}, {"${P##*/}", "a.tar.gz"}, {"${P%.*}", "/usr/local/lib/a.tar"}, {"${P%%.*}", "/usr/local/lib/a"},
		{"${P#/u?r}", "/local/lib/a.tar.gz"}, {"${P#nope}", "/usr/local/lib/a.tar.gz"},
		{"${W/X/-}", "a-bXc"}, {"${W//X/-}", "a-b-c"}, {"${W//X/}", "abc"}, {"$1$0", ""}, {"$D", "a$b"}, {"a$", "a$"},
	}
	for i, c := range table {
		word := c[0]
		if !strings.ContainsAny(word, `"'\`) {
			word = `"` + word + `"`
		}
		fmt.Fprintf(&file, "LABEL l%d=%s\n", i, word)
	}
	img, _ := w.mustBuild(Options{Context: w.context(map[string]string{"Dockerfile": file.String()}), Args: map[string]string{checkArg: "skip=all"}})
	for i, c := range table {
		if got := img.Config.Config.Labels[fmt.Sprintf("l%d", i)]; got != c[1] {
			t.Errorf("%s: %q, want %q", c[0], got, c[1])
		}
	}
	for word, want := range map[string]string{"${U:?m}": "U: m", "${E:?m}": "E: m", "${U?m}": "U: m", "${S": "", "${S:=x}": "", "${S^^}": ""} {
		for _, line := range []string{"LABEL a=" + word, "ARG A=" + word, "WORKDIR /" + word, "COPY a /" + word, "EXPOSE " + word} {
			_, _, err := w.build(Options{Context: w.context(map[string]string{"Dockerfile": "FROM base\nENV S=set E=\n" + line, "a": ""})})
			if err == nil || !strings.Contains(err.Error(), "Dockerfile:3: ") || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v", line, err)
			}
		}
	}
}

// TestScopes: which value a variable has, and where (reference of BuildKit,
// dispatchArg and buildMetaArgs).
func TestScopes(t *testing.T) {
	out := func(c image.Config) any { return c.Config.Labels["o"] }
	args := func(kv ...string) Options {
		o := Options{Args: map[string]string{}}
		for i := 0; i < len(kv); i += 2 {
			o.Args[kv[i]] = kv[i+1]
		}
		return o
	}
	runCases(t, []buildCase{
		{name: "several on a line see each other", file: "FROM base\nARG A=1 B=${A}2 C=$B$A\nLABEL o=$A$B$C", config: out, equals: `"112121"`},
		{name: "all of an ENV see what was before", file: "FROM base\nENV A=old\nENV A=new B=$A\nLABEL o=$B", config: out, equals: `"old"`},
		{name: "global ARG of global ARG", file: "ARG A=ba\nARG B=${A}se C\nFROM $B$C\nARG B\nLABEL o=$B", config: out, equals: `"base"`},
		{name: "option beats global default", file: "ARG A=nope\nFROM $A\nARG A\nLABEL o=$A", opts: args("A", "base"), config: out, equals: `"base"`},
		{name: "stage default beats global", file: "ARG A=g\nFROM base\nARG A=s\nLABEL o=$A", config: out, equals: `"s"`},
		{name: "option beats stage default", file: "ARG A=g\nFROM base\nARG A=s\nLABEL o=$A", opts: args("A", "o"), config: out, equals: `"o"`},
		{name: "empty option", file: "FROM base\nARG A=s\nLABEL o=[${A-unset}]", opts: args("A", ""), config: out, equals: `"[]"`},
		{name: "unused default may be wrong", file: "FROM base\nARG A=${B:?never}\nLABEL o=$A", opts: args("A", "o"), config: out, equals: `"o"`},
		{name: "later ARG without value keeps", file: "FROM base\nARG A=1\nARG A\nLABEL o=$A", config: out, equals: `"1"`},
		{name: "ARG after ENV without value keeps", file: "FROM base\nENV A=e\nARG A\nLABEL o=$A", config: out, equals: `"e"`},
		{name: "base image's ENV before ARG", file: "FROM base\nARG BASE=arg\nLABEL o=$BASE", config: out, equals: `"arg"`},
		{name: "child stage inherits ARG", file: "FROM base AS a\nARG A=1\nFROM a\nLABEL o=$A", config: out, equals: `"1"`},
		{name: "child stage's own ARG", file: "FROM base AS a\nARG A=1\nFROM a\nARG A=2\nLABEL o=$A", config: out, equals: `"2"`},
		{name: "ARG is not in the image", file: "FROM base\nARG A=1", config: func(c image.Config) any { return slices.Contains(c.Config.Env, "A=1") }, equals: "false"},
		{name: "ENV of ARG is", file: "FROM base\nARG A=1\nENV B=$A", config: func(c image.Config) any { return slices.Contains(c.Config.Env, "B=1") }, equals: "true"},
		{name: "target stage", file: "FROM base AS Mine\nARG TARGETSTAGE\nLABEL o=$TARGETSTAGE", config: out, equals: `"mine"`},
		{name: "target stage by option", file: "FROM base AS mine\nARG TARGETSTAGE\nLABEL o=$TARGETSTAGE\nFROM base", opts: Options{Target: "mine"}, config: out, equals: `"mine"`},
		{name: "target stage without name", file: "FROM base\nARG TARGETSTAGE\nLABEL o=$TARGETSTAGE", config: out, equals: `"default"`},
		{name: "platform", file: "FROM --platform=${TARGETPLATFORM} base\nARG BUILDPLATFORM TARGETPLATFORM\nLABEL o=$BUILDPLATFORM-$TARGETPLATFORM", config: out, equals: fmt.Sprintf("%q", native().String()+"-"+native().String())},
		{name: "platform redefined", file: "ARG TARGETARCH=x\nFROM base\nARG TARGETARCH\nLABEL o=$TARGETARCH", config: out, equals: `"x"`},
		{name: "in RUN", file: "FROM base\nARG A=1\nENV E=$A\nARG N\nRUN echo $A$E${N-none} >/o", want: map[string]string{"o": "f 644 0:0 11none\n"}},
		{name: "ENV wins in RUN", file: "FROM base\nARG A=1\nENV A=2\nRUN echo $A >/o", want: map[string]string{"o": "f 644 0:0 2\n"}},
		{name: "speaks to the builder", file: "FROM base\nARG BUILDKIT_SBOM_SCAN_STAGE=true\nRUN echo ${BUILDKIT_SBOM_SCAN_STAGE-none} >/o", want: map[string]string{"o": "f 644 0:0 none\n"}},
		{name: "not in CMD", file: "FROM base\nENV A=1\nCMD [\"$A\"]", config: func(c image.Config) any { return c.Config.Cmd }, equals: `["$A"]`},
		{name: "not in ENTRYPOINT and SHELL", file: "FROM base\nENV A=1\nSHELL [\"$A\"]\nENTRYPOINT $A", config: func(c image.Config) any { return c.Config.Entrypoint }, equals: `["$A","$A"]`},
		{name: "label keys too", file: "FROM base\nENV K=o\nLABEL $K=1", config: out, equals: `"1"`},
		{name: "COPY --from not", file: "FROM base AS a\nFROM base\nARG X=a\nCOPY --from=$X /x /x", err: "takes no variables"},
		{name: "FROM error", file: "FROM ${X:?needed}", err: `"${X:?needed}": X: needed`},
		{name: "global ARG error", file: "ARG X=${Y?needed}\nFROM base", err: `"${Y?needed}": Y: needed`},
		{name: "FROM a stage by variable", file: "ARG S=one\nFROM base AS one\nLABEL o=yes\nFROM $S", config: out, equals: `"yes"`},
		{name: "platform empty", file: "ARG P\nFROM --platform=$P base", err: "Dockerfile:2: empty platform value from expression $P"},
	})
}

func TestProxies(t *testing.T) {
	w := newWorld(t)
	dir := w.context(map[string]string{"Dockerfile": "FROM base\nENV NO_PROXY=mine\nRUN true\n"})
	args := map[string]string{"HTTP_PROXY": "upper", "http_proxy": "lower", "No_Proxy": "x", "all_proxy": "a"}
	_, log := w.mustBuild(Options{Context: dir, Args: args})
	env := strings.Join(w.steps[len(w.steps)-1].Env, " ")
	for _, want := range []string{"HTTP_PROXY=lower", "http_proxy=lower", "NO_PROXY=mine", "no_proxy=x", "ALL_PROXY=a", "all_proxy=a"} {
		if strings.Count(" "+env+" ", " "+want+" ") != 1 || strings.Contains(env, "upper") || strings.Contains(env, "NO_PROXY=x") {
			t.Errorf("no %s in %s", want, env)
		}
	}
	if strings.Contains(log, "no ARG declares") {
		t.Error(log)
	}
	args["http_proxy"], args["HTTP_PROXY"] = "other", "other"
	if _, log = w.mustBuild(Options{Context: dir, Args: args}); !strings.Contains(log, "CACHED") {
		t.Errorf("an undeclared proxy is in the key:\n%s", log)
	}
	dir = w.context(map[string]string{"Dockerfile": "FROM base\nARG http_proxy\nRUN echo $http_proxy >/o\n"})
	for _, value := range []string{"one", "two"} {
		img, _ := w.mustBuild(Options{Context: dir, Args: map[string]string{"http_proxy": value}})
		if got := w.look(img, "o"); got != "f 644 0:0 "+value+"\n" {
			t.Error(got)
		}
	}
}

// TestConfigRules: instructions that change the config, each with the corner
// that BuildKit's converter has.
func TestConfigRules(t *testing.T) {
	cfg := func(f func(image.RunConfig) any) func(image.Config) any {
		return func(c image.Config) any { return f(c.Config) }
	}
	start := cfg(func(c image.RunConfig) any { return []any{c.Entrypoint, c.Cmd} })
	health := cfg(func(c image.RunConfig) any { return c.Healthcheck })
	runCases(t, []buildCase{
		{name: "scratch", file: "FROM scratch\nLABEL a=b", config: cfg(func(c image.RunConfig) any { return []any{c.WorkingDir, c.Env} }), equals: `["/",["PATH=` + defaultPath + `"]]`},
		{name: "entrypoint after command", file: "FROM base\nCMD [\"a\"]\nENTRYPOINT [\"x\"]", config: start, equals: `[["x"],["a"]]`},
		{name: "entrypoint forgets the base stage's command", file: "FROM base AS a\nCMD [\"a\"]\nFROM a\nENTRYPOINT [\"x\"]", config: start, equals: `[["x"],null]`},
		{name: "command keeps the base stage's entrypoint", file: "FROM base AS a\nENTRYPOINT [\"x\"]\nFROM a\nCMD [\"a\"]", config: start, equals: `[["x"],["a"]]`},
		{name: "empty exec forms", file: "FROM base\nENTRYPOINT []\nCMD []", config: start, equals: `[null,null]`},
		{name: "bad JSON is shell", file: "FROM base\nCMD ['a', \"b\"]", config: start, equals: `[null,["/bin/sh","-c","['a', \"b\"]"]]`},
		{name: "JSON keeps spaces", file: "FROM base\nCMD [ \"a b\" , \"\" ]", config: start, equals: `[null,["a b",""]]`},
		{name: "shell of the moment", file: "FROM base\nENTRYPOINT a\nSHELL [\"s\", \"-x\"]\nCMD b", config: start, equals: `[["/bin/sh","-c","a"],["s","-x","b"]]`},
		{name: "shell is inherited", file: "FROM base AS a\nSHELL [\"s\"]\nFROM a\nCMD b", config: start, equals: `[null,["s","b"]]`},
		{name: "shell wants JSON", file: "FROM base\nSHELL /bin/bash", err: "Dockerfile:2: SHELL requires the arguments to be in JSON form"},
		{name: "healthcheck shell", file: "FROM base\nHEALTHCHECK CMD a b", config: health, equals: `{"Test":["CMD-SHELL","a b"]}`},
		{name: "healthcheck none", file: "FROM base\nHEALTHCHECK CMD a\nHEALTHCHECK NONE", config: health, equals: `{"Test":["NONE"]}`},
		{name: "healthcheck too often", file: "FROM base\nHEALTHCHECK --interval=1us CMD a", err: `cannot be less than 1ms`},
		{name: "healthcheck duration", file: "FROM base\nHEALTHCHECK --timeout=x CMD a", err: `Dockerfile:2: time: invalid duration "x"`},
		{name: "healthcheck retries", file: "FROM base\nHEALTHCHECK --retries=-1 CMD a", err: "--retries cannot be negative"},
		{name: "healthcheck zero", file: "FROM base\nHEALTHCHECK --interval=0s --retries=0 CMD a", config: health, equals: `{"Test":["CMD-SHELL","a"]}`},
		{name: "healthcheck nothing", file: "FROM base\nHEALTHCHECK CMD", err: "Missing command after HEALTHCHECK CMD"},
		{name: "healthcheck none with more", file: "FROM base\nHEALTHCHECK NONE x", err: "HEALTHCHECK NONE takes no arguments"},
		{name: "healthcheck is inherited", file: "FROM base AS a\nHEALTHCHECK CMD a\nFROM a", config: health, equals: `{"Test":["CMD-SHELL","a"]}`},
		{name: "signals", file: "FROM base\nARG S=SIGRTMIN+3\nSTOPSIGNAL $S", config: cfg(func(c image.RunConfig) any { return c.StopSignal }), equals: `"SIGRTMIN+3"`},
		{name: "signal number", file: "FROM base\nSTOPSIGNAL 9", config: cfg(func(c image.RunConfig) any { return c.StopSignal }), equals: `"9"`},
		{name: "signal zero", file: "FROM base\nSTOPSIGNAL 0", err: `there is no signal "0"`},
		{name: "expose from variables", file: "FROM base\nARG P='80 81/udp' R=90-91\nEXPOSE $P $R/tcp 80", config: cfg(func(c image.RunConfig) any { return c.ExposedPorts }),
			equals: `{"80/tcp":{},"81/udp":{},"90/tcp":{},"91/tcp":{}}`},
		{name: "expose adds", file: "FROM base AS a\nEXPOSE 1\nFROM a\nEXPOSE 2", config: cfg(func(c image.RunConfig) any { return c.ExposedPorts }), equals: `{"1/tcp":{},"2/tcp":{}}`},
		{name: "expose nothing", file: "FROM base\nARG P\nEXPOSE $P", config: cfg(func(c image.RunConfig) any { return c.ExposedPorts }), equals: `null`},
		{name: "volumes", file: "FROM base\nENV V=/v\nVOLUME [\"/a b\", \"$V\"]\nVOLUME /c", config: cfg(func(c image.RunConfig) any { return c.Volumes }), equals: `{"/a b":{},"/c":{},"/v":{}}`,
			want: map[string]string{"c": "-"}},
		{name: "volume keeps what is written later", file: "FROM base\nRUN mkdir /v\nVOLUME /v\nRUN touch /v/x", want: map[string]string{"v/x": "f 644 0:0"}},
		{name: "volume empty", file: "FROM base\nARG V\nVOLUME $V", err: "Dockerfile:3: VOLUME: a path is empty"},
		{name: "labels", file: "FROM base\nLABEL base=2 'a b'=\"c \\\nd\" e=\nLABEL old style  value", config: cfg(func(c image.RunConfig) any { return c.Labels }),
			equals: `{"a b":"c d","base":"2","e":"","old":"style  value"}`},
		{name: "label option wins", file: "FROM base\nLABEL a=1", opts: Options{Labels: map[string]string{"a": "2"}}, config: cfg(func(c image.RunConfig) any { return c.Labels["a"] }), equals: `"2"`},
		{name: "env old style", file: "FROM base\nENV A  b=c d", config: cfg(func(c image.RunConfig) any { return c.Env[len(c.Env)-1] }), equals: `"A=b=c d"`},
		{name: "env keeps its place", file: "FROM base\nENV A=1 B=2\nENV A=3", config: cfg(func(c image.RunConfig) any { return c.Env[2:] }), equals: `["A=3","B=2"]`},
		{name: "env blank name", file: "FROM base\nENV =1", err: "ENV names can not be blank"},
		{name: "arg blank name", file: "FROM base\nARG =1", err: "ARG names can not be blank"},
		{name: "user from variable", file: "FROM base\nARG U=app\nUSER $U:${G:-staff}", config: cfg(func(c image.RunConfig) any { return c.User }), equals: `"app:staff"`},
		{name: "workdir of the base stage", file: "FROM base AS a\nWORKDIR /a\nFROM a\nWORKDIR b/../c", config: cfg(func(c image.RunConfig) any { return c.WorkingDir }), equals: `"/a/c"`},
		{name: "workdir keeps its dots", file: "FROM base\nWORKDIR /a/../b/./c\nRUN pwd >o; test ! -e /a", want: map[string]string{"b/c/o": "f 644 0:0 /b/c\n", "a": "-"}, config: cfg(func(c image.RunConfig) any { return c.WorkingDir }), equals: `"/a/../b/./c"`},
		{name: "workdir keeps its slash", file: "FROM base\nWORKDIR /a/b/\nCOPY Dockerfile x", want: map[string]string{"a/b": "d 755 0:0"}, config: cfg(func(c image.RunConfig) any { return c.WorkingDir }), equals: `"/a/b/"`},
		{name: "workdir below dots", file: "FROM base\nWORKDIR /a/../b/\nWORKDIR c/./d/", config: cfg(func(c image.RunConfig) any { return c.WorkingDir }), equals: `"/b/c/d"`},
		{name: "workdir of dots in proc", file: "FROM base\nWORKDIR /a/../proc/self/fd/7", err: "WORKDIR /proc/self/fd/7: not in /proc"},
		{name: "workdir above the root", file: "FROM base\nWORKDIR ../../x", config: cfg(func(c image.RunConfig) any { return c.WorkingDir }), equals: `"/x"`},
		{name: "workdir from variable", file: "FROM base\nENV H=/h\nWORKDIR ${H}/$UNSET", config: cfg(func(c image.RunConfig) any { return c.WorkingDir }), equals: `"/h/"`},
		{name: "workdir belongs to USER", file: "FROM base\nUSER 5:6\nWORKDIR /p/q", want: map[string]string{"p": "d 755 5:6", "p/q": "d 755 5:6"}},
		{name: "workdir keeps an owner", file: "FROM base\nRUN mkdir -m 700 /p && chown 3:4 /p\nUSER app\nWORKDIR /p", want: map[string]string{"p": "d 700 3:4"}},
		{name: "maintainer", file: "FROM base\nMAINTAINER a b <c@d>", config: func(c image.Config) any { return c.Author }, equals: `"a b \u003cc@d\u003e"`},
		{name: "escaped by BuildKit", file: "FROM base\nCMD a", config: func(c image.Config) any {
			return c.Config.ArgsEscaped //lint:ignore SA1019 it is in the config
		}, equals: `true`},
		{name: "directives", file: "# syntax=docker.example.com/never/pulled:1\n# escape=`\n# check=skip=all\nFROM base\nLABEL a=b`\n c=d", config: cfg(func(c image.RunConfig) any { return []string{c.Labels["a"], c.Labels["c"]} }), equals: `["b","d"]`},
		{name: "directive twice", file: "# escape=`\n# escape=`\nFROM base", err: "only one escape parser directive can be used"},
		{name: "bad escape", file: "# escape=x\nFROM base", err: "invalid escape token"},
		{name: "directive after comment is none", file: "# hello\n# escape=`\nFROM base\nLABEL a=b\\\nc", config: cfg(func(c image.RunConfig) any { return c.Labels["a"] }), equals: `"bc"`},
		{name: "byte order mark and CR LF", file: "\ufeffFROM base\r\nLABEL a=b \\\r\n  c=d\r\n", config: cfg(func(c image.RunConfig) any { return c.Labels["c"] }), equals: `"d"`},
		{name: "comments inside", file: "FROM base\nRUN echo 1 \\\n# comment\n  >/o", want: map[string]string{"o": "f 644 0:0 1\n"}},
		{name: "lower case", file: "from base as x\nlabel a=1\nfrom X", config: cfg(func(c image.RunConfig) any { return c.Labels["a"] }), equals: `"1"`},
		{name: "stage name", file: "FROM base AS 1a", err: `Dockerfile:1: invalid name for build stage: "1a"`},
		{name: "FROM with two words", file: "FROM base x", err: "Dockerfile:1: FROM requires either one or three arguments"},
		{name: "empty", file: "  \n", err: "Dockerfile:1: file with no instructions"},
		{name: "long line", file: "FROM base\nRUN " + strings.Repeat("x", 70000), err: "dockerfile line greater than max allowed size"},
	})
}

// TestHistory: one entry for each instruction, in order, and which have layers.
func TestHistory(t *testing.T) {
	w := newWorld(t)
	img, _ := w.mustBuild(Options{Context: w.context(map[string]string{"a": "", "Dockerfile": `FROM base
ENV A=1 B="x y"
LABEL l=$A
USER app
WORKDIR /w
EXPOSE 80
VOLUME /v
STOPSIGNAL TERM
HEALTHCHECK --interval=5s CMD x
SHELL ["/bin/sh", "-ec"]
RUN touch /tmp/x
COPY a /a
ENTRYPOINT ["e"]
CMD c
`})})
	var got []string
	for _, h := range img.Config.History[1:] {
		line := h.CreatedBy
		if h.EmptyLayer {
			line = "0 " + line
		}
		got = append(got, line)
	}
	want := []string{
		`0 ENV A=1 B=x y`, `0 LABEL l=1`, `0 USER app`, `WORKDIR /w`, `0 EXPOSE [80/tcp]`, `0 VOLUME [/v]`, `0 STOPSIGNAL TERM`,
		`0 HEALTHCHECK {Test:[CMD-SHELL x] Interval:5s Timeout:0s StartPeriod:0s StartInterval:0s Retries:0}`, `0 SHELL [/bin/sh -ec]`,
		`RUN /bin/sh -ec touch /tmp/x`, `COPY a /a`, `0 ENTRYPOINT ["e"]`, `0 CMD ["/bin/sh" "-ec" "c"]`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
