package build

import (
	"bytes"
	"errors"
	"regexp"
	"strings"
	"testing"

	"naru/sandbox/build/progress"
)

func TestReport(t *testing.T) {
	var out bytes.Buffer
	p := newReporter(Options{Out: &out})
	v := p.begin("[1/2] RUN x")
	for _, part := range []string{"one\ntw", "o\r\n\n", "no end"} {
		if n, err := v.Write([]byte(part)); n != len(part) || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	v.end(nil)
	p.begin("[2/2] COPY y").cached()
	p.begin("bad").end(errors.New("why"))
	p.warn("odd")
	p.close(&StepError{Instruction: "RUN x", Tail: []string{"a", "b"}, Excerpt: "here\n", Hint: "try"})
	got := regexp.MustCompile(`\d+\.\d+`).ReplaceAllString(out.String(), "T")
	want := `#1 [1/2] RUN x
#1 T one
#1 T two
#1 T 
#1 T no end
#1 DONE Ts

#2 [2/2] COPY y
#2 CACHED

#3 bad
#3 ERROR: why

 1 warning found (naru build --check explains those with a name):
 - odd

------
 > RUN x:
a
b
------
here
hint: try
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestReportBounds: a step cannot make lines or tails without end.
func TestReportBounds(t *testing.T) {
	var out bytes.Buffer
	v := newReporter(Options{Out: &out}).begin("x")
	long := strings.Repeat("a", 3*maxLine+5)
	if _, err := v.Write([]byte(long + "\n")); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		_, _ = v.Write([]byte("l\n"))
	}
	for _, line := range strings.Split(out.String(), "\n") {
		if len(line) > maxLine+20 {
			t.Fatalf("line of %d bytes", len(line))
		}
	}
	if n := len(v.rest()); n != tailLines {
		t.Errorf("tail of %d", n)
	}
}

// TestEvents: a caller sees every part begin and end, in order, and knows how
// many there will be.
func TestEvents(t *testing.T) {
	w := newWorld(t)
	dir := w.context(map[string]string{"Dockerfile": "FROM base AS a\nRUN echo hello\nCMD x\nFROM a\nRUN echo world\nRUN exit 3\n"})
	var got []string
	total := 0
	show := func(e progress.Event) {
		if e.Partial || e.Time.IsZero() {
			return
		}
		switch e.Kind {
		case progress.Planned:
			total = e.Total
		case progress.Started:
			got = append(got, "begin "+e.Name)
		case progress.Failed, progress.Output:
			got = append(got, string(e.Kind)+" "+e.Text)
		case progress.Note:
			got = append(got, "note "+e.Text[strings.LastIndex(e.Text, "   6 "):])
		default:
			got = append(got, string(e.Kind))
		}
	}
	_, _, err := w.build(Options{Context: dir, Progress: show})
	if err == nil || total != 6 {
		t.Errorf("%v, %d parts", err, total)
	}
	want := `begin [internal] load build definition from Dockerfile
done
begin [internal] load metadata for base
done
warning
begin [a 1/2] FROM base
done
begin [a 2/2] RUN echo hello
output hello
done
begin [stage-1 1/2] RUN echo world
output world
done
begin [stage-1 2/2] RUN exit 3
failed Dockerfile:6: RUN exit 3: exit code 3
note    6 | >>> RUN exit 3
--------------------
`
	if text := strings.Join(got, "\n"); text != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
}
