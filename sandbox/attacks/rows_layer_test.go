package attacks

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"naru/sandbox/image/layer"
)

// layers are attacks by archives. They are unpacked in a process of their own; the
// careless unpacker shows what they would do.
func layers() []attack {
	const careful, careless = "an unpacker confined by openat2", "careless"
	row := func(name, what, mitigation string, entries func(b *box) []tar.Header, judge func(b *box) func(result) bool) attack {
		return attack{
			name: name, what: what, mitigation: mitigation,
			setup: func(b *box) { unpack(b, entries(b)); b.judge = judge(b) },
			off:   func(b *box) { b.Env("UNPACK", careless) },
		}
	}
	written := func(b *box) func(result) bool { b.overwrites(); return b.judge }
	return []attack{
		row("archive: absolute name", "writes a file of the host by its name", careful, func(b *box) []tar.Header {
			return []tar.Header{file(b.canary())}
		}, written),
		row("archive: ..", "the same by a name with \"..\"", careful, func(b *box) []tar.Header {
			return []tar.Header{file("../host/canary")}
		}, written),
		row("archive: link, then a file through it", "makes a link to the host and writes through it", careful, func(b *box) []tar.Header {
			return []tar.Header{link("out", b.host), file("out/canary")}
		}, written),
		row("archive: link, then itself as a file", "makes a link to a file of the host and writes over the link", careful, func(b *box) []tar.Header {
			return []tar.Header{link("out", b.canary()), file("out")}
		}, written),
		row("archive: hard link to the host", "links a file of the host into the image", careful, func(b *box) []tar.Header {
			return []tar.Header{{Typeflag: tar.TypeLink, Name: "got", Linkname: b.canary()}}
		}, func(b *box) func(result) bool { return contains(filepath.Join(b.layer, "got"), b) }),
		row("archive: hard link through a link", "the same through a link to a directory of the host", careful, func(b *box) []tar.Header {
			return []tar.Header{link("out", b.host), {Typeflag: tar.TypeLink, Name: "got", Linkname: "out/canary"}}
		}, func(b *box) func(result) bool { return contains(filepath.Join(b.layer, "got"), b) }),
		row("archive: whiteout of ..", "has the engine remove what is beside the layer", careful, func(b *box) []tar.Header {
			return []tar.Header{file("../host/.wh.canary")}
		}, func(b *box) func(result) bool { return func(r result) bool { return !exists(b.canary())(r) } }),
		row("archive: whiteout through a link", "the same through a link", careful, func(b *box) []tar.Header {
			return []tar.Header{link("out", b.host), file("out/.wh.canary")}
		}, func(b *box) func(result) bool { return func(r result) bool { return !exists(b.canary())(r) } }),
		row("archive: attributes of overlayfs", "redirects a directory of the image to another of the host's layers", "only the engine writes trusted.overlay.*", func(b *box) []tar.Header {
			h := tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o755, Format: tar.FormatPAX}
			h.PAXRecords = map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/../../secret"}
			return []tar.Header{h}
		}, func(b *box) func(result) bool {
			return func(result) bool {
				n, err := unix.Lgetxattr(filepath.Join(b.layer, "d"), "trusted.overlay.redirect", nil)
				return err == nil && n > 0
			}
		}),
		bomb("archive: deep directories", "300 levels; a hundred thousand stop whoever walks or removes the tree", "the limit of depth", 300, layer.Limits{Depth: 256, Entries: 1 << 20, Bytes: 1 << 40}, layer.Limits{Depth: 512, Entries: 1 << 20, Bytes: 1 << 40}, 1),
		bomb("archive: many files", "takes all inodes of the disk", "the limit of entries", 2000, layer.Limits{Depth: 256, Entries: 1000, Bytes: 1 << 40}, layer.Limits{Depth: 256, Entries: 1 << 20, Bytes: 1 << 40}, 2),
		bomb("archive: sparse file", "a terabyte of zeros in few bytes", "the limit of bytes", 64<<20, layer.Limits{Depth: 256, Entries: 1 << 20, Bytes: 1 << 20}, layer.Limits{Depth: 256, Entries: 1 << 20, Bytes: 1 << 40}, 3),
	}
}

func file(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len("pwned"))}
}

func link(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}
}

func contains(path string, b *box) func(result) bool {
	return func(result) bool {
		data, err := os.ReadFile(path)
		return err == nil && string(data) == b.token
	}
}

// bomb is a layer that costs more than its size.
func bomb(name, what, mitigation string, size int64, tight, loose layer.Limits, kind int) attack {
	set := func(l layer.Limits) change {
		return func(b *box) { b.Env("LIMITS", fmt.Sprint(l.Depth, " ", l.Entries, " ", l.Bytes)) }
	}
	return attack{
		name: name, what: what, mitigation: mitigation, off: set(loose),
		setup: func(b *box) {
			var entries []tar.Header
			switch kind {
			case 1:
				entries = []tar.Header{file(strings.Repeat("d/", int(size)) + "f")}
			case 2:
				for i := range size {
					entries = append(entries, tar.Header{Typeflag: tar.TypeReg, Name: strconv.FormatInt(i, 10), Mode: 0o644})
				}
			default:
				entries = []tar.Header{{Typeflag: tar.TypeReg, Name: "zeros", Mode: 0o644, Size: size}}
			}
			unpack(b, entries)
			set(tight)(b)
		},
	}
}

// Env sets a variable of the attack's process.
func (b *box) Env(key, value string) { b.Spec.Process.Env = append(b.Spec.Process.Env, key+"="+value) }

// unpack runs an archive through an unpacker in another process, without a container.
func unpack(b *box, entries []tar.Header) { pack(b, "unpack", entries) }

// pack gives an archive to an attack in another process.
func pack(b *box, attack string, entries []tar.Header, args ...string) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, h := range entries {
		must(b.t, w.WriteHeader(&h))
		content := make([]byte, h.Size)
		copy(content, "pwned")
		if h.Size > 0 {
			_, err := w.Write(content)
			must(b.t, err)
		}
	}
	must(b.t, w.Close())
	b.drive = func() result {
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()
		cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{"attack", attack, b.layer}, args...)...)
		cmd.Stdin, cmd.Env = &archive, b.Spec.Process.Env
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			b.t.Fatal(err)
		}
		return result{code: cmd.ProcessState.ExitCode(), out: string(out), err: string(out)}
	}
}

// attackUnpack unpacks standard input.
func attackUnpack(args []string) error {
	if os.Getenv("UNPACK") != "" {
		return unpackCarelessly(args[0], tar.NewReader(os.Stdin))
	}
	limits := layer.DefaultLimits()
	if text := os.Getenv("LIMITS"); text != "" {
		limits = layer.Limits{}
		if _, err := fmt.Sscan(text, &limits.Depth, &limits.Entries, &limits.Bytes); err != nil {
			return err
		}
	}
	_, err := layer.Unpack(context.Background(), args[0], os.Stdin, layer.Options{Limits: limits})
	return err
}

// unpackCarelessly is the unpacker that everybody writes first.
func unpackCarelessly(dir string, r *tar.Reader) error {
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return err
		}
		path := dir + "/" + h.Name
		if filepath.IsAbs(h.Name) {
			path = h.Name
		}
		if hidden, ok := strings.CutPrefix(filepath.Base(path), ".wh."); ok {
			if err := os.RemoveAll(filepath.Join(filepath.Dir(path), hidden)); err != nil {
				return err
			}
			continue
		}
		if err := putCarelessly(dir, path, h, r); err != nil {
			return err
		}
	}
}

func putCarelessly(dir, path string, h *tar.Header, r io.Reader) error {
	switch h.Typeflag {
	case tar.TypeSymlink:
		return os.Symlink(h.Linkname, path)
	case tar.TypeLink:
		target := h.Linkname
		if !filepath.IsAbs(target) {
			target = filepath.Join(dir, target)
		}
		return os.Link(target, path)
	case tar.TypeDir:
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
	default:
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		if _, err := io.Copy(f, r); err != nil {
			return err
		}
		return f.Close()
	}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
			if err := unix.Lsetxattr(path, name, []byte(value), 0); err != nil {
				return err
			}
		}
	}
	return nil
}
