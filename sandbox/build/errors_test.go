package build

import (
	"errors"
	"os"
	"strings"
	"testing"
)

// TestExcerpt pins what a person sees of a Dockerfile that is wrong.
func TestExcerpt(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct{ file, err, excerpt string }{
		{"FROM base\nRNU make\nCMD x\n", "Dockerfile:2: unknown instruction: RNU (did you mean RUN?)", `Dockerfile:2
--------------------
   1 |     FROM base
   2 | >>> RNU make
     |     ^~~
   3 |     CMD x
--------------------
`},
		{"FROM base\n\nCOPY --form=base \\\n\ta /b\n# end\n# of\n# file", "Dockerfile:3: unknown flag: --form (did you mean from?)", `Dockerfile:3
--------------------
   1 |     FROM base
   2 |
   3 | >>> COPY --form=base \
     |          ^~~~~~
   4 | >>> 	a /b
   5 |     # end
   6 |     # of
--------------------
`},
		{"RUN x\n", "Dockerfile:1: only ARG may come before the first FROM", "   1 | >>> RUN x\n"},
		{"FROM base\nRUN <<E\nx\n", "Dockerfile:2: unterminated heredoc", "   2 | >>> RUN <<E\n"},
		{"FROM base AS build\nFROM base\nCOPY --from=Biuld /x /x\n", `(did you mean the stage build?)`, "   3 | >>> COPY --from=Biuld /x /x\n     |                 ^~~~~\n"},
		{"FROM base\nENV A\n", "Dockerfile:2: ENV must have two arguments", "   2 | >>> ENV A\n"},
		{"FROM base\nUSER\n", "Dockerfile:2: USER requires exactly one argument", "   2 | >>> USER\n"},
		{"FROM base\nHEALTHCHECK --intervall=1s CMD x\n", "(did you mean interval?)", "     |                 ^~~~~~~~~~~\n"},
		{"FROM --platform=$NOPE base\n", "empty platform value from expression $NOPE", "     |                     ^~~~~\n"},
		{"FROM base\nLABEL a=\"${X:?must be set}\"\n", "X: must be set", "   2 | >>> LABEL"},
		{"FROM base\n" + "RUN a \\\n" + strings.Repeat(" b \\\n", 40) + " c\nFOO\n", "unknown instruction: FOO", "     |     ^~~\n"},
	} {
		_, _, err := w.build(Options{Context: w.context(map[string]string{"Dockerfile": c.file})})
		var placed *SourceError
		if !errors.As(err, &placed) || !strings.Contains(err.Error(), c.err) || !strings.Contains(placed.Excerpt, c.excerpt) || Explain(err) != placed.Excerpt {
			t.Errorf("%q: %v\n%s", c.file, err, Explain(err))
		}
	}
	_, _, err := w.build(Options{Context: w.context(map[string]string{"Dockerfile": "FROM base AS Final"}), Target: "fnial"})
	if err == nil || !strings.Contains(err.Error(), `there is no stage "fnial" (did you mean the stage final?)`) {
		t.Error(err)
	}
}

func TestExcerptOfLongInstruction(t *testing.T) {
	d := &dockerfile{name: "D", text: []byte("FROM a\nRUN x \\\n" + strings.Repeat("  y \\\n", 60) + "  " + strings.Repeat("z", 300) + "\n")}
	if err := d.parse(d.text); err != nil {
		t.Fatal(err)
	}
	got := d.excerpt(d.stages[0].Commands[0].Location(), "")
	if n := strings.Count(got, "\n"); n > 32 || !strings.Contains(got, "\n ... |\n") || !strings.Contains(got, "zzz…\n") || !strings.Contains(got, "   2 | >>> RUN x") {
		t.Errorf("%d lines\n%s", n, got)
	}
}

// TestHints: a command that cannot be started says why.
func TestHints(t *testing.T) {
	w := newWorld(t)
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	foreign := append([]byte{}, self[:4096]...)
	foreign[18], foreign[19] = 0xf3, 0 // EM_RISCV
	ctx := map[string]string{"crlf*": "#!/bin/sh\r\necho\r\n", "py*": "#!/usr/bin/python3\n", "plain": "#!/bin/sh\n", "foreign*": string(foreign)}
	for _, c := range []struct {
		file string
		code int
		hint string
	}{
		{"FROM base\nRUN maek all", 127, "there is no program maek in the image's PATH " + defaultPath},
		{"FROM base\nRUN stta /", 127, "(did you mean stat?)"},
		{"FROM base\nRUN echo hi && ./nope.sh", 127, "there is no ./nope.sh in the image"},
		{"FROM base\nCOPY crlf /x\nRUN /x", 127, `/x has Windows line ends (CR LF): the kernel looks for "/bin/sh\r"`},
		{"FROM base\nCOPY py /x\nRUN [\"/x\"]", 0, "/x wants the interpreter /usr/bin/python3, which the image does not have"},
		{"FROM base\nWORKDIR /w\nCOPY plain x\nRUN ./x", 126, "./x is not executable (mode 0644)"},
		{"FROM base\nRUN /tmp", 126, "/tmp is a directory"},
		{"FROM base\nRUN sh -c 'kill -9 $$'; exit $?", 137, "killed by SIGKILL"},
		{"FROM base\nRUN false", 1, ""},
		{"FROM base\nRUN exit 127", 127, ""},
	} {
		_, log, err := w.build(Options{Context: w.context(with(ctx, "Dockerfile", c.file))})
		var failed *StepError
		if !errors.As(err, &failed) || c.code != 0 && failed.Code != c.code || !strings.Contains(failed.Hint, c.hint) || c.hint == "" && failed.Hint != "" {
			t.Errorf("%q: %v\n%s\n%s", c.file, err, Explain(err), log)
		}
		if failed != nil && !strings.Contains(failed.Excerpt, ">>> RUN ") {
			t.Errorf("%q: excerpt\n%s", c.file, failed.Excerpt)
		}
	}
}

// TestELFHints needs no process: machines and loaders of others.
func TestELFHints(t *testing.T) {
	w := newWorld(t)
	self, err := os.ReadFile("/bin/ls")
	if err != nil {
		t.Skip("no /bin/ls to look at")
	}
	foreign := append([]byte{}, self...)
	foreign[18], foreign[19] = 0xf3, 0 // EM_RISCV
	dir := w.context(map[string]string{"a*": string(foreign), "b*": string(self), "c*": "\x7fELFx", "d*": "hello"})
	tree, err := openRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	for name, want := range map[string]string{
		"a": "a is built for riscv64", "b": "b needs the loader /lib64/ld-linux", "c": "c is a damaged program", "d": "neither a program nor a script",
	} {
		if got := unstartable(tree, name, name); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func with(m map[string]string, name, data string) map[string]string {
	all := map[string]string{name: data}
	for k, v := range m {
		all[k] = v
	}
	return all
}
