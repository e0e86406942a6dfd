package progress

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// script is a build as events, t seconds after its begin.
type script []struct {
	t    float64
	kind Kind
	step int
	text string
}

func (s script) play(d Display) {
	start := time.Unix(1_700_000_000, 0)
	for _, l := range s {
		e := Event{Time: start.Add(time.Duration(l.t * float64(time.Second))), Kind: l.kind, Step: l.step, Text: l.text}
		if l.kind == Started {
			e.Name, e.Text = l.text, ""
		}
		d.Event(e)
	}
}

func TestPlain(t *testing.T) {
	for _, c := range []struct {
		name   string
		script script
		want   string
	}{
		{"one after the other", script{
			{0, Started, 1, "load"}, {0.1, Done, 1, ""},
			{0.1, Started, 2, "[1/2] FROM x"}, {0.1, Cached, 2, ""},
			{0.2, Started, 3, "[2/2] RUN y"}, {0.612, Output, 3, "a"}, {12.345, Output, 3, "b"}, {150.2, Output, 3, "c"}, {151.2, Failed, 3, "exit code 1"},
		}, `#1 load
#1 DONE 0.1s

#2 [1/2] FROM x
#2 CACHED

#3 [2/2] RUN y
#3 0.412 a
#3 12.14 b
#3 150.0 c
#3 ERROR: exit code 1
`},
		{"lines of one stay together", script{
			{0, Started, 1, "a"}, {0, Started, 2, "b"}, {0.1, Output, 1, "a1"}, {0.2, Output, 2, "b1"}, {0.3, Output, 1, "a2"}, {0.4, Output, 2, "b2"},
			{0.5, Done, 1, ""}, {0.6, Output, 2, "b3"}, {0.7, Done, 2, ""},
		}, `#1 a
#1 0.100 a1
#1 0.300 a2
#1 DONE 0.5s

#2 b
#2 0.200 b1
#2 0.400 b2
#2 0.600 b3
#2 DONE 0.7s
`},
		{"one that ends comes in between", script{
			{0, Started, 1, "a"}, {0.1, Output, 1, "a1"}, {0.1, Started, 2, "b"}, {0.2, Cached, 2, ""}, {0.3, Output, 1, "a2"}, {0.4, Canceled, 1, ""},
		}, `#1 a
#1 0.100 a1
#1 ...

#2 b
#2 CACHED

#1 a
#1 0.300 a2
#1 CANCELED
`},
		{"nobody waits for long", script{
			{0, Started, 1, "a"}, {0, Started, 2, "b"}, {0.9, Output, 1, "a1"}, {1.8, Output, 1, "a2"}, {1.9, Output, 2, "b1"}, {2.7, Output, 1, "a3"}, {3.6, Output, 1, "a4"}, {4.5, Output, 1, "a5"},
			{5.1, Output, 2, "b2"}, {5.2, Output, 1, "a6"}, {6.3, Output, 1, "a7"}, {7, Done, 1, ""}, {7, Done, 2, ""},
		}, `#1 a
#1 0.900 a1
#1 1.800 a2
#1 2.700 a3
#1 3.600 a4
#1 4.500 a5
#1 ...

#2 b
#2 1.900 b1
#2 5.100 b2
#2 ...

#1 a
#1 5.200 a6
#1 6.300 a7
#1 DONE 7.0s

#2 b
#2 DONE 7.0s
`},
		{"warnings", script{{0, Started, 1, "a"}, {0, Warning, 1, "w1"}, {0, Warning, 0, "w2"}, {0, Note, 0, "n\n"}, {0, Warning, 0, "w3"}, {0, Done, 1, ""}},
			"#1 a\n#1 WARN: w1\n#1 DONE 0.0s\n\n 2 warnings found (naru build --check explains those with a name):\n - w2\n - w3\n\nn\n"},
	} {
		var out bytes.Buffer
		p := NewPlain(&out)
		c.script.play(p)
		p.Close()
		if out.String() != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", c.name, out.String(), c.want)
		}
	}
}

// TestPlainWaits: what waits is seen without another event, and all of it.
func TestPlainWaits(t *testing.T) {
	seen := make(chan string, 100)
	p := NewPlain(writeFunc(func(b []byte) { seen <- string(b) }))
	now := time.Now()
	p.Event(Event{Time: now, Kind: Started, Step: 1, Name: "a"})
	p.Event(Event{Time: now, Kind: Started, Step: 2, Name: "b"})
	p.Event(Event{Time: now, Kind: Output, Step: 2, Text: "b1"})
	<-seen // a
	select {
	case text := <-seen:
		if text != "#1 ...\n\n#2 b\n#2 0.000 b1\n" {
			t.Errorf("%q", text)
		}
	case <-time.After(10 * time.Second):
		t.Error("b1 is still not shown")
	}
	p.Close()
	var out bytes.Buffer
	p = NewPlain(&out)
	p.Event(Event{Time: now, Kind: Started, Step: 1, Name: "a"})
	p.Event(Event{Time: now, Kind: Started, Step: 2, Name: "b"})
	for range 20_000 {
		p.Event(Event{Time: now, Kind: Output, Step: 2, Text: "line of twenty bytes"})
	}
	p.Close()
	if n := strings.Count(out.String(), "twenty bytes\n"); n != 20_000 {
		t.Errorf("%d lines", n)
	}
}

type writeFunc func([]byte)

func (f writeFunc) Write(b []byte) (int, error) { f(b); return len(b), nil }

func TestJSON(t *testing.T) {
	var out bytes.Buffer
	script{
		{0, Planned, 0, ""}, {0, Started, 1, "a"}, {1, Output, 1, "text"}, {2, Cached, 1, ""}, {2, Started, 2, "b"}, {3, Failed, 2, "why"}, {3, Warning, 0, "w"}, {3, Note, 0, "n"},
	}.play(newJSON(&out))
	dec := json.NewDecoder(&out)
	var got []statusJSON
	for dec.More() {
		var s statusJSON
		if err := dec.Decode(&s); err != nil {
			t.Fatal(err)
		}
		got = append(got, s)
	}
	if len(got) != 6 {
		t.Fatalf("%d lines: %+v", len(got), got)
	}
	a := got[0].Vertexes[0]
	if a.Name != "a" || a.Started == nil || a.Completed != nil || got[1].Logs[0].Vertex != a.Digest || string(got[1].Logs[0].Data) != "text\n" {
		t.Errorf("%+v", got[:2])
	}
	if c := got[2].Vertexes[0]; c.Digest != a.Digest || !c.Cached || c.Completed.Sub(*c.Started) != 2*time.Second {
		t.Errorf("%+v", c)
	}
	if b := got[4].Vertexes[0]; b.Error != "why" || b.Digest == a.Digest || string(got[5].Warnings[0].Short) != "w" {
		t.Errorf("%+v", got[4:])
	}
}

func TestNew(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for mode, want := range map[string]bool{"": true, "auto": true, "plain": true, "quiet": true, "rawjson": true, "tty": false, "x": false} {
		if d, err := New(mode, f); (err == nil) != want || d != nil && err == nil && (mode == "" || mode == "auto") && d.(*Plain) == nil {
			t.Errorf("%q: %v, %v", mode, d, err)
		}
	}
}

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"a\tb": "a b", "\x1b[31mred\x1b[0m": "red", "\x1b]0;title\x07x": "x", "\x1b]8;;http://x\x1b\\l\x1b]8;;\x1b\\": "l", "\x1b[2J\x1b[1;1Hx": "x",
		"a\bb\x00": "ab", "\u202eevil": "evil", "\u009b2Jx": "2Jx", "\x1b": "", "한국": "한국",
	} {
		if got := clean(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	for in, want := range map[string]int{"abc": 3, "한국": 4, "e\u0301": 1, "🚀x": 3, "": 0} {
		if got := columns(in); got != want {
			t.Errorf("%q: %d columns, want %d", in, got, want)
		}
	}
	if got := fit("한국어", 5); got != "한국" {
		t.Error(got)
	}
}
