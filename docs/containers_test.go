// Package docs_test runs the commands of the pages beside it, so that they stay true.
package docs_test

import (
	"bufio"
	_ "embed"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"naru/cli"
	"naru/sandbox/runtime/launch"
)

//go:embed containers.md
var containersPage string

// TestMain is also the program naru, when it is called by that name: main.go in
// two lines, so that the pages are run by what is under test and need no build.
func TestMain(m *testing.M) {
	launch.Main()
	if filepath.Base(os.Args[0]) == "naru" {
		os.Exit(cli.Main(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// TestContainersPage types the page's console blocks into a shell, in order, and
// compares what it says with what the page says.
//
//	# command           typed into the shell; "> " continues it
//	box# command        the same, in the shell that the command before started
//	anything else       the output; "…" stands for any text, alone on a line for any lines
//	<!-- only where: C -->   before a block: it is left out where the shell command C fails
//
// The shell has mount, network and IPC namespaces of its own.
func TestContainersPage(t *testing.T) {
	if testing.Short() {
		t.Skip("starts containers; not in -short")
	}
	if os.Getuid() != 0 {
		t.Skip("containers need root")
	}
	for _, tool := range []string{"/bin/busybox", "unshare", "nsenter", "pivot_root", "setpriv", "ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("the page's commands need ", err)
		}
	}
	blocks := parse(containersPage)
	if len(blocks) < 20 {
		t.Fatalf("only %d blocks were found", len(blocks))
	}
	sh := newShell(t)
	ran := 0
	for _, b := range blocks {
		if b.condition != "" {
			if _, code := sh.run(t, command{text: b.condition}, false); code != 0 {
				t.Logf("line %d: left out on this machine: not %s", b.line, b.condition)
				continue
			}
		}
		for i, c := range b.commands {
			enters := c.prompt == "# " && i+1 < len(b.commands) && b.commands[i+1].prompt == "box# "
			out, code := sh.run(t, c, enters)
			if !matches(c.output, out) {
				t.Fatalf("containers.md:%d: %s\nsays\n%s(exit %d)\nand the page says\n%s", c.line, c.text, out, code, c.output)
			}
			if code != 0 && !showsError(c.output) {
				t.Fatalf("containers.md:%d: %s: exit %d, and the page shows no error:\n%s", c.line, c.text, code, out)
			}
			ran++
		}
	}
	if ran < 60 {
		t.Errorf("only %d commands were run", ran)
	}
}

// showsError says that the page ends a command's output with the text of an
// error, or its beginning, "name: …": anything else must have succeeded.
func showsError(page string) bool {
	page = strings.TrimSpace(page)
	return page != "" && (!strings.HasSuffix(page, "…") || strings.HasSuffix(page, ": …"))
}

// TestMatches shows that the comparison can say no.
func TestMatches(t *testing.T) {
	for _, tt := range []struct {
		page, out string
		want      bool
	}{
		{"", "", true},
		{"", "x\n", false},
		{"a\n", "", false},
		{"a\n", "a  \n", true},
		{"a…c\n", "abbc\n", true},
		{"a…c\n", "a\nc\n", false},
		{"a.c\n", "abc\n", false},
		{"a\n…\nd\n", "a\nd\n", true},
		{"a\n…\nd\n", "a\nb\nc\nd\n", true},
		{"…\n", "", true},
		{"a\n", "a\nb\n", false},
	} {
		if got := matches(tt.page, tt.out); got != tt.want {
			t.Errorf("page %q, output %q: %v", tt.page, tt.out, got)
		}
	}
}

// block is a fenced console block.
type block struct {
	line      int
	condition string
	commands  []command
}

type command struct {
	line   int
	prompt string
	text   string // more than one line with a here-document
	output string // what the page says it prints
}

var onlyWhere = regexp.MustCompile(`^<!-- only where: (.*) -->$`)

func parse(page string) (blocks []block) {
	inside, condition := false, ""
	for i, line := range strings.Split(page, "\n") {
		if m := onlyWhere.FindStringSubmatch(line); m != nil && !inside {
			condition = m[1]
			continue
		}
		switch {
		case line == "```console":
			inside = true
			blocks = append(blocks, block{line: i + 1, condition: condition})
		case line == "```":
			inside = false
		case inside:
			blocks[len(blocks)-1].add(i+1, line)
			continue
		}
		if line != "" {
			condition = ""
		}
	}
	return blocks
}

func (b *block) add(number int, line string) {
	for _, prompt := range []string{"# ", "box# "} {
		if text, ok := strings.CutPrefix(line, prompt); ok {
			b.commands = append(b.commands, command{line: number, prompt: prompt, text: text})
			return
		}
	}
	last := &b.commands[len(b.commands)-1] // a block begins with a command
	if text, ok := strings.CutPrefix(line, "> "); ok {
		last.text += "\n" + text
		return
	}
	last.output += line + "\n"
}

func matches(page, out string) bool {
	var pattern strings.Builder
	for line := range strings.Lines(page) {
		if line == "…\n" {
			pattern.WriteString(`(?:.*\n)*?`)
			continue
		}
		pattern.WriteString(strings.ReplaceAll(regexp.QuoteMeta(strings.TrimRight(line, " \n")), "…", ".*") + `[ \t]*\n`)
	}
	return regexp.MustCompile(`^(?:` + pattern.String() + `)$`).MatchString(out)
}

// shell is the one that types for the reader.
type shell struct {
	in    *os.File
	lines chan string
}

const sentinel = "@@ the command ended with"

func newShell(t *testing.T) *shell {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil { // containers' users look in
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(dir, "naru")); err != nil {
		t.Fatal(err)
	}
	stdin, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh")
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TMPDIR="+dir,
		"PATH="+dir+":"+os.Getenv("PATH")+":/usr/sbin:/sbin")
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = dir, stdin, stdout, stdout
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC, Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = stdin.Close(), stdout.Close()
	s := &shell{in: in, lines: make(chan string, 1000)}
	go s.read(out)
	t.Cleanup(func() { s.end(t, cmd) })
	return s
}

func (s *shell) read(out io.ReadCloser) {
	defer close(s.lines)
	defer out.Close()
	for lines := bufio.NewScanner(out); lines.Scan(); {
		s.lines <- lines.Text()
	}
}

// end leaves no container, group and process of the page, also after a failure.
func (s *shell) end(t *testing.T, cmd *exec.Cmd) {
	_ = s.in.Close()
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // with what runs in the background
	_ = cmd.Wait()
	roots, err := filepath.Glob(filepath.Join(cmd.Dir, "*/naru")) // there only after a failure
	if err != nil {
		t.Error(err)
	}
	for _, root := range roots {
		reset := exec.Command(filepath.Join(cmd.Dir, "naru"), "--root", root, "--run", filepath.Join(filepath.Dir(root), "run"), "system", "reset", "--force")
		if out, err := reset.CombinedOutput(); err != nil {
			t.Errorf("reset: %v: %s", err, out)
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/by-hand", "/sys/fs/cgroup/*/by-hand"} {
		groups, err := filepath.Glob(pattern)
		if err != nil {
			t.Error(err)
		}
		for _, group := range groups {
			_ = os.WriteFile(filepath.Join(group, "cgroup.kill"), []byte("1"), 0) // v2
			_ = syscall.Rmdir(group)
			t.Errorf("the page left %s behind", group)
		}
	}
	_ = exec.Command("ip", "netns", "delete", "by-hand").Run() // there only after a failure
	for line := range s.lines {
		t.Log("after the page: ", line)
	}
}

// run types a command and returns what it printed and its exit code. One that
// enters another shell ends only when that one does: there is nothing to wait for.
func (s *shell) run(t *testing.T, c command, enters bool) (out string, code int) {
	t.Helper()
	text := c.text
	switch {
	case strings.Contains(text, "\n"):
		text += "\n"
	case strings.HasSuffix(text, "&"):
		// unshare and nsenter execute their command when they have done their work.
		text += ` while case $(readlink /proc/$!/exe) in *sh|*/unshare|*/nsenter) ;; *) false;; esac; do :; done; `
	default:
		text += "; "
	}
	if c.prompt == "box# " && c.text == "exit" {
		text = "exit\n"
	} else {
		text += `echo "` + sentinel + ` $?"` + "\n"
	}
	if _, err := io.WriteString(s.in, text); err != nil {
		t.Fatal(err)
	}
	if enters {
		s.waitUntilRead(t)
		return "", 0
	}
	deadline := time.After(30 * time.Second)
	for {
		select {
		case line, ok := <-s.lines:
			if !ok {
				t.Fatalf("%s: the shell has gone:\n%s", c.text, out)
			}
			before, exit, found := strings.Cut(line, sentinel+" ")
			if !found {
				out += line + "\n"
				continue
			}
			if before != "" { // output without an end of line
				out += before + "\n"
			}
			code, err := strconv.Atoi(exit)
			if err != nil {
				t.Fatal(err)
			}
			return out, code
		case <-deadline:
			t.Fatalf("%s: not within 30 s:\n%s", c.text, out)
		}
	}
}

// waitUntilRead waits until the shell has taken the line: it then waits for its
// child, and what is typed next is read by that.
func (s *shell) waitUntilRead(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		left, err := unix.IoctlGetInt(int(s.in.Fd()), unix.TIOCINQ)
		if err != nil {
			t.Fatal(err)
		}
		if left == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the shell does not read")
		}
	}
}
