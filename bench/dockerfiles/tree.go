package main

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// result is what a build has made: its files as lines, by path, and the parts of
// its config that a program can see.
type result struct {
	files  map[string]string
	config map[string]string
}

// lines is the text form, which is kept and compared.
func (r *result) lines() []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(r.config)) {
		out = append(out, "config "+k+" "+r.config[k])
	}
	for _, p := range slices.Sorted(maps.Keys(r.files)) {
		out = append(out, p+" "+r.files[p])
	}
	return out
}

// readArchive flattens the only image of a docker archive.
func readArchive(file string) (*result, error) {
	img, err := tarball.ImageFromPath(file, nil)
	if err != nil {
		return nil, err
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	t := tree{}
	for _, l := range layers {
		if err := t.apply(l); err != nil {
			return nil, err
		}
	}
	raw, err := img.RawConfigFile()
	if err != nil {
		return nil, err
	}
	config, err := readConfig(raw)
	return &result{t.flat(), config}, err
}

// node is a file of the flattened tree.
type node struct {
	h   tar.Header
	sum string
	id  *int // of its inode: hard links share it
}

type tree map[string]*node

// apply lays a layer over the tree, whiteouts first (OCI image-spec, layer.md).
func (t tree) apply(l v1.Layer) error {
	r, err := l.Uncompressed()
	if err != nil {
		return err
	}
	defer r.Close()
	fresh := tree{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := t.entry(fresh, h, tr); err != nil {
			return err
		}
	}
	for p, n := range fresh {
		if old := t[p]; old != nil && old.h.Typeflag == tar.TypeDir && n.h.Typeflag != tar.TypeDir {
			t.remove(p, false)
		}
		t[p] = n
	}
	return nil
}

func (t tree) entry(fresh tree, h *tar.Header, content io.Reader) error {
	p := path.Clean("/" + h.Name)
	dir, name := path.Split(p)
	if name == ".wh..wh..opq" {
		t.remove(path.Clean(dir), false)
		return nil
	}
	if hidden, ok := strings.CutPrefix(name, ".wh."); ok {
		t.remove(path.Join(dir, hidden), true)
		return nil
	}
	n := &node{h: *h, id: new(int)}
	switch h.Typeflag {
	case tar.TypeReg:
		sum := sha256.New()
		if _, err := io.Copy(sum, content); err != nil {
			return err
		}
		n.sum = hex.EncodeToString(sum.Sum(nil))[:12]
	case tar.TypeLink:
		old := fresh[path.Clean("/"+h.Linkname)]
		if old == nil {
			old = t[path.Clean("/"+h.Linkname)]
		}
		if old == nil {
			return fmt.Errorf("%s is a hard link to %s, which is not there", p, h.Linkname)
		}
		n = old
	}
	fresh[p] = n
	return nil
}

// remove drops what is below p, and p itself too if it is to go.
func (t tree) remove(p string, itself bool) {
	for q := range t {
		if strings.HasPrefix(q, strings.TrimSuffix(p, "/")+"/") && q != "/" || itself && q == p {
			delete(t, q)
		}
	}
}

// stubs are what builders leave in an image for their own mounts: each leaves
// others. They count only when there is something in them.
func stubs() []string {
	return []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc", "/dev", "/proc", "/sys", "/run/secrets", "/run", "/.dockerenv", "/"}
}

// recent divides times that a file was given from those at which it was made.
func recent(t time.Time) bool { return t.Year() >= 2020 }

func (t tree) flat() map[string]string {
	for _, p := range stubs() {
		n := t[p]
		if n == nil || n.h.Size > 0 || p == "/" {
			continue
		}
		if n.h.Typeflag != tar.TypeDir || !t.hasChild(p) {
			delete(t, p)
		}
	}
	first := map[*int]string{}
	out := map[string]string{}
	for _, p := range slices.Sorted(maps.Keys(t)) {
		if p == "/" {
			continue
		}
		n := t[p]
		line := n.line()
		if at, ok := first[n.id]; ok {
			line += " same-inode-as=" + at
		} else {
			first[n.id] = p
		}
		out[p] = line
	}
	return out
}

func (t tree) hasChild(p string) bool {
	for q := range t {
		if strings.HasPrefix(q, p+"/") {
			return true
		}
	}
	return false
}

// line is all of a file that is compared.
func (n *node) line() string {
	h := &n.h
	kinds := map[byte]string{tar.TypeReg: "file", tar.TypeDir: "dir", tar.TypeSymlink: "symlink", tar.TypeFifo: "fifo", tar.TypeChar: "char", tar.TypeBlock: "block"}
	s := fmt.Sprintf("%s %04o %d:%d", kinds[h.Typeflag], h.Mode&0o7777, h.Uid, h.Gid)
	switch h.Typeflag {
	case tar.TypeReg:
		s += fmt.Sprintf(" %d %s", h.Size, n.sum)
	case tar.TypeSymlink:
		s = fmt.Sprintf("symlink %d:%d -> %s", h.Uid, h.Gid, h.Linkname) // nobody looks at its mode
	case tar.TypeChar, tar.TypeBlock:
		s += fmt.Sprintf(" %d,%d", h.Devmajor, h.Devminor)
	}
	if !recent(h.ModTime) && h.Typeflag != tar.TypeDir {
		s += " " + h.ModTime.UTC().Format(time.RFC3339)
	}
	for _, k := range slices.Sorted(maps.Keys(h.PAXRecords)) {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			s += fmt.Sprintf(" %s=%q", name, h.PAXRecords[k])
		}
	}
	return s
}

// readConfig takes what a program or a later build sees.
func readConfig(raw []byte) (map[string]string, error) {
	var doc struct {
		Author string                     `json:"author"`
		Config map[string]json.RawMessage `json:"config"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, err
	}
	out := map[string]string{}
	if doc.Author != "" {
		out["Author"] = doc.Author
	}
	for _, k := range []string{"Env", "Cmd", "Entrypoint", "User", "WorkingDir", "Labels", "Volumes", "ExposedPorts", "StopSignal", "Shell", "OnBuild", "Healthcheck"} {
		text, err := plain(doc.Config[k])
		if err != nil {
			return nil, fmt.Errorf("config %s: %w", k, err)
		}
		if text != "" && !(k == "WorkingDir" && text == `"/"`) { // which is what none means
			out[k] = text
		}
	}
	return out, nil
}

// plain is a JSON value with its keys in order; nothing where it says nothing.
func plain(raw json.RawMessage) (string, error) {
	if len(raw) == 0 {
		return "", nil
	}
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return "", err
	}
	if m, ok := v.(map[string]any); ok {
		delete(m, "io.buildah.version")
	}
	data, err := json.Marshal(v)
	switch s := string(data); s {
	case "null", "[]", "{}", `""`:
		return "", err
	default:
		return s, err
	}
}
