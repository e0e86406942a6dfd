package image

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/opencontainers/go-digest"

	"naru/internal/atomicfile"
)

// sink hashes and counts what is written, and passes it on.
type sink struct {
	hash hash.Hash
	w    io.Writer
	n    int64
}

// newSink passes on to w; nil: to nobody.
func newSink(w io.Writer) *sink {
	if w == nil {
		w = io.Discard
	}
	return &sink{hash: sha256.New(), w: w}
}

func (s *sink) Write(p []byte) (int, error) {
	s.n += int64(len(p))
	s.hash.Write(p) // never fails (hash.Hash)
	return s.w.Write(p)
}

func (s *sink) digest() digest.Digest { return digest.NewDigest(digest.SHA256, s.hash) }

// putBlob stores a small blob.
func (s *Store) putBlob(data []byte) (digest.Digest, error) {
	d := digest.FromBytes(data)
	if err := atomicfile.WriteFile(s.blobPath(d), data, 0o600); err != nil {
		return "", fmt.Errorf("store blob: %w", err)
	}
	return d, nil
}

// adoptBlob moves a file whose digest was checked into the store.
func (s *Store) adoptBlob(path string, d digest.Digest) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("store blob: %w", err)
	}
	if err := os.Rename(path, s.blobPath(d)); err != nil {
		return fmt.Errorf("store blob: %w", err)
	}
	return nil
}

func (s *Store) hasBlob(d digest.Digest) bool {
	_, err := os.Stat(s.blobPath(d))
	return err == nil
}
