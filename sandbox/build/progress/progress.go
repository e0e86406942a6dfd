// Package progress shows a build while it runs: as lines (Plain), on a terminal
// (TTY), or as JSON for programs, each in the form of BuildKit.
//
// One build is a stream of events. A step is started, writes output, and is
// cached, done, failed or canceled; steps of different stages run side by side.
// Plain shows one step at a time and lets the others wait a little, so that
// their lines do not mix; TTY draws the whole table again several times a
// second. Both show warnings and the explanation of a failure at the end.
package progress

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// Kind says what an event is.
type Kind string

// The kinds of events.
const (
	Planned  Kind = "planned"  // Total steps are going to be seen, as far as is known
	Started  Kind = "started"  // step Step, whose name is Name
	Output   Kind = "output"   // it wrote the line Text
	Cached   Kind = "cached"   // it did not have to be done
	Done     Kind = "done"     // it was
	Failed   Kind = "failed"   // Text is why
	Canceled Kind = "canceled" // it was stopped, because another one failed or the caller wanted it
	Warning  Kind = "warning"  // Text is about the build, or Step if it is not 0
	Note     Kind = "note"     // Text, of several lines, explains the end of the build
)

// Event is one thing that happened in a build.
type Event struct {
	Time  time.Time `json:"time"`
	Kind  Kind      `json:"kind"`
	Step  int       `json:"step,omitempty"` // from 1, in the order of their start
	Name  string    `json:"name,omitempty"`
	Text  string    `json:"text,omitempty"`
	Total int       `json:"total,omitempty"`
	// Partial output has no end yet: the step's next output is the same line again.
	Partial bool `json:"partial,omitempty"`
}

// Display shows events. It is given one at a time, and it never fails: a log
// that cannot be written stops no build.
type Display interface {
	Event(Event)
	// Close shows what is shown at the end. It is called once, after the last event.
	Close()
}

// modes are the names that New knows, the default first.
var modes = [...]string{"auto", "plain", "tty", "quiet", "rawjson"}

// New returns the display of a mode: auto (also "") is tty on a terminal that
// can move its cursor, and plain elsewhere; quiet shows nothing but why a build
// failed.
func New(mode string, out io.Writer) (Display, error) {
	file, _ := out.(*os.File)
	terminal := file != nil && term.IsTerminal(int(file.Fd()))
	switch mode {
	case "", "auto":
		if terminal && os.Getenv("TERM") != "dumb" {
			return newTTY(file), nil
		}
		return NewPlain(out), nil
	case "plain":
		return NewPlain(out), nil
	case "tty":
		if !terminal {
			return nil, fmt.Errorf("progress tty: the output is no terminal")
		}
		return newTTY(file), nil
	case "quiet":
		return quiet{out}, nil
	case "rawjson":
		return newJSON(out), nil
	}
	return nil, fmt.Errorf("progress %q: want %s", mode, strings.Join(modes[:], ", "))
}

// quiet shows the explanation of a failure only.
type quiet struct{ out io.Writer }

func (q quiet) Event(e Event) {
	if e.Kind == Note {
		_, _ = io.WriteString(q.out, e.Text)
	}
}

func (quiet) Close() {}

// seconds is how long a step has been at work, with the digits BuildKit gives
// it: three of them in the beginning, then fewer.
func seconds(d time.Duration) string {
	switch s := d.Seconds(); {
	case s < 10:
		return fmt.Sprintf("%.3f", s)
	case s < 100:
		return fmt.Sprintf("%.2f", s)
	default:
		return fmt.Sprintf("%.1f", s)
	}
}

// ending is what comes after the steps: warnings, then notes.
func ending(warnings []string, notes string) (text string) {
	switch len(warnings) {
	case 0:
	case 1:
		text = "\n 1 warning found (naru build --check explains those with a name):\n"
	default:
		text = fmt.Sprintf("\n %d warnings found (naru build --check explains those with a name):\n", len(warnings))
	}
	for _, w := range warnings {
		text += " - " + w + "\n"
	}
	if notes != "" {
		text += "\n" + notes
	}
	return text
}
