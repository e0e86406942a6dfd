package attacks

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"naru/sandbox"
	"naru/sandbox/image"
)

// images are attacks on the engine while it prepares a container of a hostile image:
// it reads the image's files, and must not be led elsewhere. They run in a process of
// their own; the careless engine joins paths.
func images() []attack {
	row := func(name, what, mitigation, user string, entries func(b *box) []tar.Header) attack {
		return attack{
			name: name, what: what, mitigation: mitigation,
			setup: func(b *box) {
				pack(b, "engine", entries(b), user)
				must(b.t, os.WriteFile(b.canary(), []byte("evil:x:0:0:"+b.token+":/:\n"), 0o600))
				b.judge = func(r result) bool { return r.code == worked || strings.Contains(r.out, b.token) }
			},
			off: func(b *box) { b.Env("CARELESS", "1") },
		}
	}
	const confined = "files of the image are opened by openat2"
	return []attack{
		row("user of the host", "an image's passwd file is a link to one of the host", confined, "evil", func(b *box) []tar.Header {
			return []tar.Header{link("etc/passwd", b.canary())}
		}),
		row("directory of users", "an image's /etc is a link to a directory of the host", confined, "evil", func(b *box) []tar.Header {
			return []tar.Header{link("etc", b.host), link("passwd", "canary")}
		}),
		row("pipe for users", "an image's passwd file is a pipe, for which the engine waits for ever", "O_NONBLOCK, and regular files only", "evil", func(b *box) []tar.Header {
			return []tar.Header{{Typeflag: tar.TypeFifo, Name: "etc/passwd", Mode: 0o644}}
		}),
		row("copy into a volume", "a link where a volume is copied from the image gives it files of the host", confined, "", func(b *box) []tar.Header {
			return []tar.Header{link("data", b.host)}
		}),
	}
}

// attackEngine makes a container of an image from standard input, with a volume at /data.
func attackEngine(args []string) (err error) {
	dir, user := args[0], args[1]
	if os.Getenv("CARELESS") != "" {
		return engineCareless(filepath.Join(dir, "image"), user)
	}
	run, err := os.MkdirTemp("/run", "attack") // short enough for sockets
	if err != nil {
		os.Exit(3) // no attack
	}
	e, err := sandbox.Open(sandbox.Options{Root: filepath.Join(dir, "root"), Run: run})
	if err != nil {
		os.Exit(3)
	}
	ctx := context.Background()
	defer func() { err = errors.Join(err, e.Reset(ctx)) }()
	if _, err := e.Images().Import(ctx, os.Stdin, "hostile", image.Config{}); err != nil {
		os.Exit(3)
	}
	_, err = e.Define(ctx, sandbox.ContainerConfig{
		Image: "hostile", Args: []string{"/x"}, Network: sandbox.NetworkNone, User: user,
		Mounts: []sandbox.Mount{{Volume: true, Source: "data", Target: "/data"}},
	})
	if err != nil || user != "" {
		return err
	}
	v, err := e.Volumes().Get("data")
	if err != nil {
		os.Exit(3)
	}
	return attackCat([]string{filepath.Join(v.Path, "canary")})
}

// engineCareless does the same by joined paths.
func engineCareless(root, user string) error {
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		return err
	}
	for r := tar.NewReader(os.Stdin); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		path := filepath.Join(root, h.Name)
		os.Remove(path) // the directory that may be in the way
		if h.Typeflag == tar.TypeFifo {
			err = unix.Mkfifo(path, 0o644)
		} else {
			err = os.Symlink(h.Linkname, path)
		}
		if err != nil {
			return err
		}
	}
	switch user {
	case "":
		return attackCat([]string{filepath.Join(root, "data", "canary")})
	default:
		return readUsers(root)
	}
}

// readUsers reads the users, and says that it would wait for ever where it would.
func readUsers(root string) error {
	for _, name := range []string{"etc/passwd", "etc/canary"} {
		path := filepath.Join(root, name)
		info, err := os.Stat(path)
		if err != nil {
			continue
		}
		if info.Mode()&os.ModeNamedPipe != 0 {
			fmt.Println("waiting for", path)
			return nil
		}
		return attackCat([]string{path})
	}
	return errors.New("no users")
}
