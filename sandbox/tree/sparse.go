package tree

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// extent is a part of a file that is no hole.
type extent struct{ at, size int64 }

// What is worth a sparse entry: holes of some size, and a list of parts that readers
// take (archive/tar stops at 1 MiB, CVE-2025-58183).
const (
	minHoles   = 1 << 20
	maxExtents = 20_000
)

// extents finds the parts of a file of size bytes that are no holes. Where the file
// system does not know, the whole file is one.
func extents(f *os.File, size int64) ([]extent, error) {
	var list []extent
	for at := int64(0); at < size; {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // nothing but a hole
			return list, nil
		}
		if errors.Is(err, unix.EINVAL) && at == 0 {
			return []extent{{0, size}}, nil
		}
		if err != nil {
			return nil, fmt.Errorf("find data: %w", err)
		}
		hole, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		if errors.Is(err, unix.ENXIO) { // cut off since
			return list, nil
		}
		if err != nil {
			return nil, fmt.Errorf("find hole: %w", err)
		}
		if data >= size {
			break
		}
		hole = min(hole, size)
		list = append(list, extent{data, hole - data})
		at = hole
	}
	return list, nil
}

func total(parts []extent) (n int64) {
	for _, p := range parts {
		n += p.size
	}
	return n
}

// sparseHeader writes the header of a file of which only parts follow, and what says
// where they belong: GNU tar's format 1.0 (its manual, "Storing Sparse Files"), which
// archive/tar reads but does not write. The caller writes the parts and fills the last
// block up.
func (p *packer) sparseHeader(h *tar.Header, parts []extent) error {
	if n := len(parts); n == 0 || parts[n-1].at+parts[n-1].size < h.Size {
		parts = append(slices.Clone(parts), extent{h.Size, 0}) // or GNU tar ends the file here
	}
	places := strconv.AppendInt(nil, int64(len(parts)), 10)
	for _, part := range parts {
		places = fmt.Appendf(places, "\n%d\n%d", part.at, part.size)
	}
	places = append(places, '\n')
	places = append(places, make([]byte, padding(int64(len(places))))...)
	stored := int64(len(places)) + total(parts)

	records := maps.Clone(h.PAXRecords)
	if records == nil {
		records = map[string]string{}
	}
	maps.Copy(records, map[string]string{
		"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": h.Name, "GNU.sparse.realsize": strconv.FormatInt(h.Size, 10),
		"size": strconv.FormatInt(stored, 10), "uid": strconv.Itoa(h.Uid), "gid": strconv.Itoa(h.Gid),
		"mtime": paxTime(h.ModTime),
	})
	extended, err := extendedHeader(records)
	if err != nil {
		return err
	}
	// The records say what this cannot. Without any of its own it is one block.
	plain := new(bytes.Buffer)
	if err := tar.NewWriter(plain).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "GNUSparseFile.0/file", Mode: h.Mode, Format: tar.FormatUSTAR}); err != nil {
		return err
	}
	if err := p.tar.Flush(); err != nil {
		return err
	}
	for _, b := range [][]byte{extended, plain.Bytes(), places} {
		if _, err := p.out.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// paxTime has whole seconds before 1970, where the fraction would count backwards.
func paxTime(t time.Time) string {
	if t.Unix() < 0 {
		return strconv.FormatInt(t.Unix(), 10)
	}
	return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond())
}

// extendedHeader is a PAX header for the next entry. archive/tar writes one with any
// records only for the whole archive: that differs in its type, and so in its checksum.
func extendedHeader(records map[string]string) ([]byte, error) {
	b := new(bytes.Buffer)
	err := tar.NewWriter(b).WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "PaxHeaders.0/file", PAXRecords: records})
	if err != nil {
		return nil, err
	}
	const sum, typeflag = 148, 156 // offsets (POSIX, pax, "ustar Interchange Format")
	block := b.Bytes()
	block = append(block, make([]byte, padding(int64(len(block))))...)
	block[typeflag] = tar.TypeXHeader
	n, err := strconv.ParseInt(string(bytes.Trim(block[sum:sum+8], " \x00")), 8, 64)
	if err != nil {
		return nil, fmt.Errorf("internal error: checksum: %w", err)
	}
	copy(block[sum:], fmt.Sprintf("%06o\x00 ", n+tar.TypeXHeader-tar.TypeXGlobalHeader))
	return block, nil
}

// padding is what fills n bytes of a tar up to a whole block.
func padding(n int64) int64 { return -n & 511 }
