package build

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"naru/sandbox/internal/diskuse"
)

// TestWriteLimits: COPY, ADD and the archive of a context end while they write, with
// the limit's words and the line's number.
func TestWriteLimits(t *testing.T) {
	w := newWorld(t)
	random := make([]byte, 1<<20)
	for i := range random {
		random[i] = byte(i*i>>3 + i)
	}
	var many, big []tarEntry
	for i := range 300 {
		many = append(many, tarEntry{name: fmt.Sprint("d", i%7, "/f", i), kind: '0', mode: 0o644, data: "x"})
		big = append(big, tarEntry{name: fmt.Sprint("b", i%5), kind: '0', mode: 0o644, data: string(random)})
	}
	dir := w.context(map[string]string{"many.tgz": gzipped(t, makeTar(t, many...)), "big.tgz": gzipped(t, makeTar(t, big[:20]...)), "sparse.tgz": gzipped(t, []byte(sparseTar(t, 1<<30))), "small": "s"})
	for i := range 5 {
		writeFile(t, dir, fmt.Sprint("big/", i), string(random))
	}
	for i := range 300 {
		writeFile(t, dir, fmt.Sprint("many/", i%7, "/", i), "x")
	}
	s := newSite(t, map[string]string{"/big.tgz": gzipped(t, makeTar(t, big[:20]...))})
	for _, c := range []struct {
		name, file string
		o          Options
		err        string
	}{
		{"archive, bytes", "ADD big.tgz /n/", Options{Disk: 2 << 20}, "Dockerfile:2: ADD: unpack /big.tgz: entry \"b2\": the build has written more than it may: 2097152 bytes"},
		{"archive, files", "ADD many.tgz /n/", Options{Inodes: 50}, "Dockerfile:2: ADD: unpack /many.tgz: entry"},
		{"archive, holes", "ADD sparse.tgz /n/", Options{Disk: 2 << 20}, "more than it may: 2097152 bytes, holes too"},
		{"directory, bytes", "COPY big /n/", Options{Disk: 2 << 20}, "Dockerfile:2: COPY: the build has written more than it may: 2097152 bytes"},
		{"directory, files", "COPY many /n/", Options{Inodes: 50}, "more than it may: 50 files"},
		{"the layers before count", "COPY big /a/\nCOPY big/0 big/1 /b/", Options{Disk: 6 << 20}, "Dockerfile:3: COPY: the build has written more"},
		{"enough", "COPY big /n/\nCOPY many /m/\nADD many.tgz /o/", Options{Disk: 16 << 20, Inodes: 1000}, ""},
	} {
		writeFile(t, dir, "Dockerfile", "FROM base\n"+c.file+"\n")
		c.o.Context, c.o.NoCache = dir, true
		_, log, err := w.build(c.o)
		if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %v\n%s", c.name, err, log)
		}
	}
	if _, _, err := w.build(Options{Context: s.URL + "/big.tgz", Reach: loopback, Disk: 2 << 20}); err == nil || !strings.Contains(err.Error(), "more than it may: 2097152 bytes") {
		t.Errorf("context: %v", err)
	}
	b := budget{limit: diskuse.Use{Bytes: 2 << 20}}
	tree, err := openRoot(t.TempDir())
	must(t, err)
	defer tree.Close()
	x := extraction{ctx: t.Context(), into: tree, left: 1 << 30, buf: make([]byte, 64<<10), meter: b.meter()}
	if err := x.run(strings.NewReader(gzipped(t, makeTar(t, big...)))); err == nil {
		t.Error("300 MB were unpacked")
	}
	if use, err := diskuse.Of(t.Context(), fmt.Sprintf("/proc/self/fd/%d", tree.fd), diskuse.Use{}); err != nil || use.Bytes > 2<<20+128<<10 {
		t.Errorf("%d bytes were written before the end, %v", use.Bytes, err)
	}
	if x.meter.end(); b.running != (diskuse.Use{}) {
		t.Errorf("still counted: %+v", b.running)
	}
	if left, err := filepath.Glob(filepath.Join(w.dir, "images/tmp", "*")); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}
