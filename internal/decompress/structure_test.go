package decompress

import (
	"bytes"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/ulikunitz/xz"
)

func xzed(t *testing.T, data []byte, c xz.WriterConfig) string {
	t.Helper()
	var buf bytes.Buffer
	w, err := c.NewWriter(&buf)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(data)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.String()
}

func open(file string) (io.Reader, error) {
	r, _, err := Open(strings.NewReader(file))
	return r, err
}

// TestXZ: the walk through the structure agrees with what xz(1) and the library
// write, and finds blocks that want too much memory.
func TestXZ(t *testing.T) {
	data := bytes.Repeat([]byte("some text that can be compressed "), 1_500)
	noise := make([]byte, 30_000)
	for i := range noise {
		noise[i] = byte(i * i >> 7 * (i>>3 | 1))
	}
	data = append(data, noise...)
	files := map[string]string{
		"library": xzed(t, data, xz.WriterConfig{}), "blocks": xzed(t, data, xz.WriterConfig{BlockSize: 5_000, CheckSum: xz.SHA256}),
		"no check": xzed(t, data, xz.WriterConfig{NoCheckSum: true}),
	}
	files["streams"] = files["library"] + "\x00\x00\x00\x00" + files["blocks"]
	for _, args := range []string{"-0", "-9", "--block-size=20000 -T2", "--check=sha256", "--check=none"} {
		cmd := exec.Command("xz", append(strings.Fields(args), "-c")...)
		cmd.Stdin = bytes.NewReader(data)
		if out, err := cmd.Output(); err == nil {
			files["xz "+args] = string(out)
		}
	}
	for name, file := range files {
		want := data
		if name == "streams" {
			want = append(slices.Clone(data), data...)
		}
		r, err := open(file)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	huge := xzed(t, []byte("x"), xz.WriterConfig{DictCap: window + 1})
	second := files["no check"] + huge
	for _, file := range []string{huge, second} {
		r, err := open(file)
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		if err == nil || !strings.Contains(err.Error(), "at most") {
			t.Error(err)
		}
	}
	for cut := 0; cut < 120; cut += 3 { // and damage is found, without a panic
		if r, err := open(files["blocks"][:len(files["blocks"])-1-cut]); err == nil {
			if _, err := io.Copy(io.Discard, r); err == nil {
				t.Errorf("%d bytes less: no error", cut+1)
			}
		}
	}
}
