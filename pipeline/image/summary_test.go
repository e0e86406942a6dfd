package image

import (
	"bytes"
	"testing"
	"time"

	"naru/sandbox/build/progress"
)

func TestSummary(t *testing.T) {
	var s summary
	begun := time.Unix(1000, 0)
	at := func(sec float64, e progress.Event) {
		e.Time = begun.Add(time.Duration(sec * float64(time.Second)))
		s.event(e)
	}
	at(0, progress.Event{Kind: progress.Started, Step: 1, Name: "[internal] load build definition from Dockerfile"})
	at(9, progress.Event{Kind: progress.Done, Step: 1})
	for i, name := range []string{"[1/3] FROM debian", "[build  2/10] RUN make", "[3/3] COPY . /x"} {
		at(10, progress.Event{Kind: progress.Started, Step: i + 2, Name: name})
	}
	at(10, progress.Event{Kind: progress.Cached, Step: 2})
	at(14.5, progress.Event{Kind: progress.Done, Step: 3})
	at(11, progress.Event{Kind: progress.Done, Step: 4})
	var out bytes.Buffer
	if err := s.write(&out, begun.Add(15*time.Second)); err != nil || out.String() != "image built in 15.0s: 3 steps, 1 cached; slowest: [build  2/10] RUN make, 4.5s\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
	out.Reset()
	if err := (&summary{}).write(&out, begun); err != nil || out.Len() > 0 {
		t.Errorf("nothing was built: %q, %v", out.String(), err)
	}
}
