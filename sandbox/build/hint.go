package build

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// exitCode is how the command of a RUN ended.
type exitCode struct {
	code int
	args []string // as the Executor got them
	env  []string
	dir  string
	tail []string // its last output
}

// hint says why a command could not be started or was ended, as far as its exit
// code and the files of the image tell; "" if they do not.
func (b *Builder) hint(e exitCode, layers []string) string {
	if e.code > 128 && e.code <= 128+64 {
		return signalHint(unix.Signal(e.code - 128))
	}
	if e.code != 126 && e.code != 127 || len(e.args) == 0 {
		return ""
	}
	tree, err := b.viewOf(layers)
	if err != nil {
		return ""
	}
	defer tree.Close()
	who := e.culprit()
	file, err := e.find(tree, who)
	if errors.Is(err, fs.ErrNotExist) {
		return e.missing(tree, who)
	}
	if err != nil {
		return ""
	}
	return unstartable(tree, who, file)
}

func signalHint(s unix.Signal) string {
	name := unix.SignalName(s)
	switch s {
	case unix.SIGKILL:
		return "killed by SIGKILL: often the kernel, when memory runs out"
	case unix.SIGSEGV, unix.SIGILL, unix.SIGBUS:
		return "ended by " + name + ": the program crashed"
	}
	if name == "" {
		return ""
	}
	return "ended by " + name
}

// notStarted is what shells write about a program that they cannot start:
// "sh: foo: not found", "/bin/sh: 1: foo: not found",
// "bash: line 3: foo: command not found", "sh: ./x: Permission denied".
var notStarted = regexp.MustCompile(`^(?:.*sh: |.*/script: )(?:line )?(?:\d+: )?([^\s:]+): (?:command )?(?i:not found|no such file or directory|cannot execute.*|permission denied|exec format error|is a directory|bad interpreter.*|required file not found)`)

// culprit is the program that could not be started: the one that the shell
// complains about, or else the command itself.
func (e exitCode) culprit() string {
	for i := len(e.tail) - 1; i >= 0; i-- {
		if m := notStarted.FindStringSubmatch(e.tail[i]); m != nil {
			return m[1]
		}
	}
	return e.args[0]
}

// find resolves a program as execvp would.
func (e exitCode) find(tree *root, who string) (string, error) {
	if strings.Contains(who, "/") {
		if !path.IsAbs(who) {
			who = path.Join(e.dir, who)
		}
		return present(tree, who)
	}
	for _, dir := range e.path() {
		if file, err := present(tree, path.Join(dir, who)); err == nil {
			return file, nil
		}
	}
	return "", fs.ErrNotExist
}

func (e exitCode) path() []string {
	value, _ := vars{e.env}.Get("PATH")
	return strings.Split(value, ":")
}

func present(tree *root, name string) (string, error) {
	file, err := tree.resolve(name)
	if err == nil {
		_, err = tree.lstat(file)
	}
	return file, err
}

// missing says that there is no such program.
func (e exitCode) missing(tree *root, who string) string {
	switch {
	case who == e.args[0] && who == "/bin/sh":
		return "the image has no /bin/sh: use the exec form, RUN [\"program\", \"argument\"], or a base image with a shell"
	case strings.Contains(who, "/"):
		return fmt.Sprintf("there is no %s in the image", who)
	}
	var names []string
	for _, dir := range e.path() {
		if p, err := present(tree, dir); err == nil {
			list, _ := tree.list(p) // a hint less
			names = append(names, list...)
		}
	}
	near := ""
	if match := nearest(who, names); match != "" {
		near = fmt.Sprintf(" (did you mean %s?)", match)
	}
	return fmt.Sprintf("there is no program %s in the image's PATH %s%s; install it in an earlier RUN, or in the base image", who, strings.Join(e.path(), ":"), near)
}

// unstartable says why a file that is there cannot be started.
func unstartable(tree *root, who, file string) string {
	st, err := tree.lstat(file)
	switch {
	case err != nil:
		return ""
	case isDir(&st):
		return who + " is a directory"
	case isFile(&st) && st.Mode&0o111 == 0:
		return fmt.Sprintf("%s is not executable (mode %04o): COPY --chmod=755, or RUN chmod +x before", who, st.Mode&0o7777)
	case !isFile(&st):
		return ""
	}
	f, err := tree.open(file)
	if err != nil {
		return ""
	}
	defer f.Close() // read only: nothing can be lost
	head := make([]byte, 512)
	n, err := io.ReadFull(f, head)
	if err != nil && err != io.ErrUnexpectedEOF {
		return ""
	}
	switch head = head[:n]; {
	case bytes.HasPrefix(head, []byte("#!")):
		return badInterpreter(tree, who, string(head[2:]))
	case bytes.HasPrefix(head, []byte(elf.ELFMAG)):
		return badELF(tree, who, f)
	}
	return who + " is neither a program nor a script that begins with #!"
}

func badInterpreter(tree *root, who, text string) string {
	line, _, _ := strings.Cut(text, "\n")
	if strings.HasSuffix(line, "\r") {
		return fmt.Sprintf("%s has Windows line ends (CR LF): the kernel looks for %q; save it with LF (git: \"*.sh text eol=lf\" in .gitattributes)", who, strings.TrimSpace(line)+"\r")
	}
	words := strings.Fields(line)
	if len(words) == 0 {
		return who + " begins with an empty #! line"
	}
	if _, err := present(tree, words[0]); errors.Is(err, fs.ErrNotExist) {
		return fmt.Sprintf("%s wants the interpreter %s, which the image does not have", who, words[0])
	}
	return ""
}

// badELF finds a program of another architecture, and one whose loader the
// image does not have: glibc's programs do not start on musl, and the reverse.
func badELF(tree *root, who string, f *os.File) string {
	prog, err := elf.NewFile(f)
	if err != nil {
		return who + " is a damaged program: " + err.Error()
	}
	if arch := machines[prog.Machine]; arch != runtime.GOARCH {
		if arch == "" {
			arch = prog.Machine.String()
		}
		return fmt.Sprintf("%s is built for %s, this image is for %s", who, arch, runtime.GOARCH)
	}
	for _, p := range prog.Progs {
		if p.Type != elf.PT_INTERP || p.Filesz > unix.PathMax {
			continue
		}
		data, err := io.ReadAll(p.Open())
		if err != nil {
			return ""
		}
		loader := strings.TrimRight(string(data), "\x00")
		if _, err := present(tree, loader); errors.Is(err, fs.ErrNotExist) {
			return fmt.Sprintf("%s needs the loader %s, which the image does not have: it is made for another C library; link it statically or take a base image that fits", who, loader)
		}
	}
	return ""
}

// machines are the GOARCH of ELF's machines.
var machines = map[elf.Machine]string{
	elf.EM_X86_64: "amd64", elf.EM_386: "386", elf.EM_AARCH64: "arm64", elf.EM_ARM: "arm", elf.EM_RISCV: "riscv64",
	elf.EM_S390: "s390x", elf.EM_PPC64: "ppc64le", elf.EM_LOONGARCH: "loong64", elf.EM_MIPS: "mips",
}
