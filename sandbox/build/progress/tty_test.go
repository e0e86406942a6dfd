package progress

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// screen is as much of a terminal as the display uses, with all that has
// scrolled out of it. Anything else that is written to it fails the test.
type screen struct {
	t             *testing.T
	mu            sync.Mutex
	width, height int
	lines         [][]rune
	top, row, col int // row counts from top
	hidden        bool
	colors        map[string]bool
	rest          []byte
}

func (s *screen) Write(data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data = append(s.rest, data...)
	s.rest = nil
	for len(data) > 0 {
		if data[0] == '\x1b' {
			m := regexp.MustCompile(`^\x1b\[(\??)([\d;]*)([A-Za-z])`).FindSubmatch(data)
			if m == nil {
				if len(data) > 8 {
					s.t.Errorf("unknown sequence %q", data[:8])
				}
				s.rest = bytes.Clone(data)
				return
			}
			s.sequence(string(m[1]), string(m[2]), m[3][0])
			data = data[len(m[0]):]
			continue
		}
		if data[0] >= 0xc0 && len(data) < 4 && !bytes.ContainsAny(data, "\r\n") {
			s.rest = bytes.Clone(data) // a rune may be cut in two
			return
		}
		r := []rune(string(data[:min(4, len(data))]))[0]
		data = data[len(string(r)):]
		s.put(r)
	}
}

func (s *screen) sequence(private, arg string, final byte) {
	n := 1
	_, _ = fmt.Sscan(arg, &n)
	switch {
	case private != "" && arg == "25":
		s.hidden = final == 'l'
	case final == 'A':
		if s.row -= n; s.row < 0 {
			s.t.Errorf("the cursor leaves the screen by %d", -s.row)
			s.row = 0
		}
	case final == 'K':
		s.line()
		s.lines[s.top+s.row] = s.lines[s.top+s.row][:min(s.col, len(s.line()))]
	case final == 'J':
		s.sequence("", "", 'K')
		s.lines = s.lines[:s.top+s.row+1]
	case final == 'm':
		s.colors[arg] = true
	default:
		s.t.Errorf("unknown sequence %s%s%c", private, arg, final)
	}
}

func (s *screen) line() []rune {
	for len(s.lines) <= s.top+s.row {
		s.lines = append(s.lines, nil)
	}
	return s.lines[s.top+s.row]
}

func (s *screen) put(r rune) {
	switch r {
	case '\r':
		s.col = 0
		return
	case '\n':
		if s.row++; s.row >= s.height {
			s.row, s.top = s.height-1, s.top+1
		}
		s.line()
		return
	}
	if s.col >= s.width {
		s.put('\r')
		s.put('\n')
	}
	l := s.line()
	for len(l) <= s.col {
		l = append(l, ' ')
	}
	l[s.col] = r
	s.lines[s.top+s.row] = l
	s.col++
}

func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var lines []string
	for _, l := range s.lines {
		lines = append(lines, strings.TrimRight(string(l), " "))
	}
	return strings.TrimRight(strings.Join(lines, "\n"), "\n") + "\n"
}

// until waits for the screen to show something.
func (s *screen) until(want string) {
	s.t.Helper()
	re := regexp.MustCompile(want)
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if re.MatchString(s.text()) {
			return
		}
	}
	s.t.Fatalf("the screen never showed %s:\n%s", want, s.text())
}

// terminal opens a real one, whose screen is followed.
func terminal(t *testing.T, width, height int) (*os.File, *screen) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("needs a terminal: ", err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprint("/dev/pts/", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(height), Col: uint16(width)}); err != nil {
		t.Fatal(err)
	}
	s := &screen{t: t, width: width, height: height, colors: map[string]bool{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			s.Write(buf[:n])
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { slave.Close(); <-done; master.Close() })
	return slave, s
}

// begin plays the first half of a build that is in the midst of two RUNs.
func begin(d Display) time.Time {
	start := time.Now()
	at := func(kind Kind, step int, text string) {
		e := Event{Time: start, Kind: kind, Step: step, Text: text, Total: 6}
		if kind == Started {
			e.Name = text
		}
		d.Event(e)
	}
	at(Planned, 0, "")
	at(Started, 1, "[internal] load build definition from Dockerfile")
	at(Done, 1, "")
	at(Started, 2, "[build 1/3] FROM docker.example.com/library/golang:1.26-bookworm")
	at(Cached, 2, "")
	at(Started, 3, "[build 2/3] RUN go build ./...")
	at(Started, 4, "[assets 1/1] RUN npm run build")
	for i := range 20 {
		at(Output, 3, fmt.Sprintf("compile package %d", i))
	}
	at(Output, 4, "\x1b[32mvite\x1b[0m\tbuild")
	at(Output, 4, "10%\r20%\r30%")
	return start
}

func TestTTY(t *testing.T) {
	t.Setenv("NO_COLOR", "")
	for _, c := range []struct {
		width, height int
		frame         string
	}{
		{80, 24, `[+] Building T (2/6)
 => [internal] load build definition from Dockerfile T
 => CACHED [build 1/3] FROM docker.example.com/library/golang:1.26-bookwor T
 => [build 2/3] RUN go build ./... T
 => => # compile package 14
 => => # compile package 15
 => => # compile package 16
 => => # compile package 17
 => => # compile package 18
 => => # compile package 19
 => [assets 1/1] RUN npm run build T
 => => # vite build
 => => # 30%
`},
		{40, 10, `[+] Building T (2/6)
 => [internal] load build definiti T
 => CACHED [build 1/3] FROM docker T
 => [build 2/3] RUN go build ./... T
 => => # compile package 18
 => => # compile package 19
 => [assets 1/1] RUN npm run build T
 => => # vite build
 => => # 30%
`},
		{40, 7, `[+] Building T (2/6)
 => [internal] load build definiti T
 => CACHED [build 1/3] FROM docker T
 => [build 2/3] RUN go build ./... T
 => [assets 1/1] RUN npm run build T
`},
		{16, 5, `[+] Building 0.
 => CACHED [bui
 => [build 2/3]
 => [assets 1/1
`},
	} {
		t.Run(fmt.Sprintf("%dx%d", c.width, c.height), func(t *testing.T) {
			tty, s := terminal(t, c.width, c.height)
			d, err := New("auto", tty)
			if err != nil {
				t.Fatal(err)
			}
			begin(d)
			lines := strings.Split(strings.TrimSpace(c.frame), "\n")
			s.until(regexp.QuoteMeta(strings.TrimSuffix(lines[len(lines)-1], " T")))
			if got := times.ReplaceAllString(s.text(), " T"); got != c.frame {
				t.Errorf("got\n%swant\n%s", got, c.frame)
			}
			finish(d)
			checkEnd(t, s, c.width)
		})
	}
}

var times = regexp.MustCompile(` +\d\.\ds`)

func finish(d Display) {
	now := time.Now()
	d.Event(Event{Time: now, Kind: Failed, Step: 3, Text: "exit code 1"})
	d.Event(Event{Time: now, Kind: Canceled, Step: 4})
	d.Event(Event{Time: now, Kind: Warning, Text: "careful"})
	d.Event(Event{Time: now, Kind: Note, Text: "Dockerfile:3\n"})
	d.Close()
}

func checkEnd(t *testing.T, s *screen, width int) {
	t.Helper()
	s.until("Dockerfile:3\n$")
	got := s.text()
	if n := strings.Count(got, "[+] Building"); n != 1 {
		t.Errorf("%d tables:\n%s", n, got)
	}
	if s.hidden || !s.colors["34"] || !s.colors["31"] || !s.colors["33"] {
		t.Errorf("cursor hidden: %t, colours %v", s.hidden, s.colors)
	}
	if width < 40 {
		return
	}
	for _, want := range []string{"=> ERROR [build 2/3] RUN", "=> CANCELED [assets 1/1]", "=> CACHED [build 1/3] FROM", "load build", "\n - careful\n"} {
		if strings.Count(got, want) != 1 {
			t.Errorf("want %q once:\n%s", want, got)
		}
	}
	if strings.Contains(got, "compile package") || strings.Contains(got, "FINISHED") {
		t.Errorf("output of a running step is left:\n%s", got)
	}
}

// TestTTYResize: a terminal that gets shorter or narrower shows one table still.
func TestTTYResize(t *testing.T) {
	var out bytes.Buffer
	s := &screen{t: t, width: 100, height: 30, colors: map[string]bool{}}
	d := makeTTY(&out, func() (int, int) { return s.width, s.height })
	show := func() {
		d.draw(time.Now(), false)
		s.Write(bytes.ReplaceAll(out.Bytes(), []byte("\n"), []byte("\r\n")))
		out.Reset()
	}
	begin(d)
	show()
	for _, height := range []int{8, 30, 5} {
		if over := s.row - (height - 1); over > 0 { // what a terminal does
			s.top, s.row = s.top+over, s.row-over
		}
		s.height = height
		show()
		show()
		var seen []string
		for _, l := range s.lines[s.top:] {
			seen = append(seen, string(l))
		}
		if text := strings.Join(seen, "\n"); strings.Count(text, "[+]") != 1 || strings.Count(text, "RUN go build") != 1 || len(seen) > height {
			t.Errorf("%d lines:\n%s", height, text)
		}
	}
	if len(s.colors) > 0 {
		t.Errorf("colours without being asked for: %v", s.colors)
	}
}

// TestTTYFinished: a good end shows every step once, in any height.
func TestTTYFinished(t *testing.T) {
	t.Setenv("NO_COLOR", "1")
	tty, s := terminal(t, 60, 8)
	d, err := New("tty", tty)
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= 30; i++ {
		d.Event(Event{Time: time.Now(), Kind: Started, Step: i, Name: fmt.Sprintf("[%2d/30] RUN step", i)})
		if i == 15 {
			s.until(`\[15/30\]`)
		}
		d.Event(Event{Time: time.Now(), Kind: Done, Step: i})
	}
	d.Close()
	s.until(`FINISHED(.*\n)+ => \[30/30\]`)
	got := s.text()
	for i := 1; i <= 30; i++ {
		if n := strings.Count(got, fmt.Sprintf("[%2d/30]", i)); n != 1 {
			t.Errorf("step %d is shown %d times:\n%s", i, n, got)
		}
	}
	if len(s.colors) > 0 {
		t.Errorf("colours: %v", s.colors)
	}
}
