package decompress

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"strings"
	"testing"
)

// compress runs a program of the machine, whose output is the truth.
func compress(t *testing.T, data []byte, program string, args ...string) []byte {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Skipf("needs %s", program)
	}
	cmd := exec.Command(path, args...)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v", program, args, err)
	}
	return out
}

// sample is data of which a part can be compressed.
func sample() []byte {
	random := rand.New(rand.NewPCG(1, 2))
	b := bytes.Repeat([]byte("to be compressed "), 50_000)
	for range 300_000 {
		b = append(b, byte(random.Uint32()))
	}
	return append(b, make([]byte, 1<<20)...)
}

func TestOpenReadsWhatProgramsWrite(t *testing.T) {
	data := sample()
	for _, test := range []struct {
		format Format
		line   string
	}{
		{Gzip, "gzip -c"}, {Zstd, "zstd -c"}, {Zstd, "zstd -c --long=27"}, {Bzip2, "bzip2 -c"},
		{XZ, "xz -c -0"}, {XZ, "xz -c -6"}, {XZ, "xz -c -9e"}, {XZ, "xz -c -T2 --block-size=100000"},
		{XZ, "xz -c --check=sha256"}, {XZ, "xz -c --check=none"},
	} {
		t.Run(test.line, func(t *testing.T) {
			words := strings.Fields(test.line)
			packed := compress(t, data, words[0], words[1:]...)
			for what, in := range map[string][]byte{"once": packed, "twice in a row": append(bytes.Clone(packed), packed...)} {
				r, format, err := Open(bytes.NewReader(in))
				if err != nil || format != test.format {
					t.Fatalf("%s: %q, %v", what, format, err)
				}
				got, err := io.ReadAll(r)
				if err != nil || sha256.Sum256(got) != sha256.Sum256(bytes.Repeat(data, len(in)/len(packed))) {
					t.Errorf("%s: %d bytes, %v", what, len(got), err)
				}
				if err := r.Close(); err != nil {
					t.Error(err)
				}
			}
			r, _, err := Open(bytes.NewReader(packed[:len(packed)-5]))
			if err == nil {
				_, err = io.Copy(io.Discard, r)
			}
			if err == nil {
				t.Error("cut off, and nothing was said")
			}
		})
	}
}

func TestOpenLeavesOtherBytes(t *testing.T) {
	for _, data := range []string{"", "x", "plain text", "\xfd7zX", "PK\x03\x04"} {
		r, format, err := Open(strings.NewReader(data))
		if err != nil || format != None {
			t.Fatalf("%q: %q, %v", data, format, err)
		}
		if got, err := io.ReadAll(r); err != nil || string(got) != data {
			t.Errorf("%q became %q, %v", data, got, err)
		}
	}
}

// TestMemoryIsBounded gives streams that ask for a window of a gigabyte, and one of many
// blocks that each ask for as much as one may.
func TestMemoryIsBounded(t *testing.T) {
	small := []byte("small")
	large := compress(t, small, "xz", "-c", "--lzma2=dict=128MiB")
	header := large[12:24] // behind the stream's own; size, flags, id, size, dictionary, zeros, CRC32
	block := large[12 : 12+12+12+8]
	if header[0] != 2 || header[2] != 0x21 {
		t.Fatalf("xz wrote another header: % x", header)
	}
	again := bytes.Clone(large)
	again[16]++ // the next size: 192 MiB
	binary.LittleEndian.PutUint32(again[20:], crc32.ChecksumIEEE(again[12:20]))
	many := append(bytes.Clone(large[:12]), bytes.Repeat(block, 1000)...)
	for what, test := range map[string]struct {
		in   []byte
		want string
	}{
		"xz, a large dictionary":    {again, "a dictionary of 201326592 bytes, at most 134217728"},
		"xz, 1 GiB by the program":  {compress(t, small, "xz", "-c", "--lzma2=dict=1GiB"), "a dictionary of 1073741824 bytes"},
		"xz, many dictionaries":     {many, "dictionaries of"},
		"zstd, a window of 512 MiB": {compress(t, bytes.Repeat(small, 1<<20), "zstd", "-c", "--ultra", "--long=29", "--no-content-size", "--no-check"), "window size exceeded"},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		r, _, err := Open(bytes.NewReader(test.in))
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		runtime.ReadMemStats(&after)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", what, err, test.want)
		}
		if took := after.TotalAlloc - before.TotalAlloc; what != "xz, many dictionaries" && took > 64<<20 {
			t.Errorf("%s: it took %d bytes", what, took)
		}
	}
	if r, _, err := Open(bytes.NewReader(large)); err != nil {
		t.Error(err)
	} else if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, small) {
		t.Errorf("as large as may be: %q, %v", got, err)
	}
}

func FuzzOpen(f *testing.F) {
	for _, s := range []string{"", "\x1f\x8b\x08", "\x28\xb5\x2f\xfd\x00", "BZh91AY&SY", "\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4\x46\x02\x00\x21\x01\x16\x00\x00\x00\x74\x2f\xe5\xa3"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(_ *testing.T, data []byte) {
		r, _, err := Open(bytes.NewReader(data))
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(r, 1<<20)) // it ends, whatever it says
		_ = r.Close()
	})
}
