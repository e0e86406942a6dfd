package build

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"

	"naru/internal/atomicfile"
)

// keyHash makes a key. Every part goes in with its length, so that no two lists
// of parts make the same bytes.
type keyHash struct{ h hash.Hash }

// keyVersion changes when a step of the same key would make another layer.
const keyVersion = "naru step 2"

func newKey(kind string) *keyHash {
	k := &keyHash{sha256.New()}
	k.field(keyVersion, kind)
	return k
}

// field adds a named list of strings.
func (k *keyHash) field(name string, parts ...string) {
	k.number(uint64(len(parts)))
	k.text(name)
	for _, p := range parts {
		k.text(p)
	}
}

func (k *keyHash) text(s string) {
	k.number(uint64(len(s)))
	k.h.Write([]byte(s)) // a hash never fails
}

func (k *keyHash) number(list ...uint64) {
	var b [8]byte
	for _, n := range list {
		binary.LittleEndian.PutUint64(b[:], n)
		k.h.Write(b[:])
	}
}

// layers adds a stack of layers.
func (k *keyHash) layers(ids []digest.Digest) {
	list := make([]string, len(ids))
	for i, id := range ids {
		list[i] = id.String()
	}
	k.field("layers", list...)
}

func (k *keyHash) key() string { return hex.EncodeToString(k.h.Sum(nil)) }

// cache remembers which layer a step made, in one small file per key. It is
// shared by all apps: a key holds everything that a layer depends on, so whoever
// knows the key could make the layer. Below dir:
//
//	steps/KK/KEY     a record and its digest; its mtime is when it was used last
//	content/KK/KEY   the content key of files that were picked from layers
//	locks/KEY        flocked by who makes the step
//	images/ID        an image that a build made, while it may have lost its name
//	bases/KEY        which image a name meant for another platform than ours
//	sums/NAME        contents of the files of a context
//	mounts/          cache mounts, which belong to owners
type cache struct{ dir string }

// record is what is remembered of a step.
type record struct {
	Layer   digest.Digest `json:"layer,omitempty"` // empty: the step changed no file
	Created time.Time     `json:"created"`         // when the layer was made first
	Text    string        `json:"text,omitempty"`  // of the instruction, for people
	Shape   string        `json:"shape,omitempty"` // of the layer's directory, see shapeOf
	Disk    int64         `json:"disk,omitempty"`  // bytes
}

func (c cache) file(kind, key string) string { return filepath.Join(c.dir, kind, key[:2], key) }

// step returns what is remembered under a key. What is not as it was written is
// a miss.
func (c cache) step(key string) (record, bool) { return readRecord(c.file("steps", key)) }

func readRecord(file string) (r record, ok bool) {
	data, err := os.ReadFile(file)
	if err != nil {
		return r, false
	}
	body, sum, _ := bytes.Cut(data, []byte("\n"))
	if digest.FromBytes(body).String() != string(sum) || json.Unmarshal(body, &r) != nil {
		return record{}, false
	}
	if r.Layer != "" && r.Layer.Validate() != nil {
		return record{}, false
	}
	return r, true
}

func (c cache) putStep(key string, r record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("remember step: %w", err)
	}
	return writeCacheFile(c.file("steps", key), fmt.Appendf(data, "\n%s", digest.FromBytes(data)))
}

// touch notes that a step was used now. Without it the step is only forgotten
// sooner.
func (c cache) touch(key string) { _ = os.Chtimes(c.file("steps", key), time.Time{}, time.Now()) }

func (c cache) mounts() string { return filepath.Join(c.dir, "mounts") }

func (c cache) imageFile(hex string) string { return filepath.Join(c.dir, "images", hex) }

// putImage remembers that a build made an image: when nothing names it any more,
// it is no more than a cache. Its time is that of the build's begin, so that it
// is older than the steps it has kept in use.
func (c cache) putImage(id digest.Digest, begun time.Time) error {
	file := c.imageFile(id.Encoded())
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return fmt.Errorf("remember image: %w", err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return fmt.Errorf("remember image: %w", err)
	}
	return os.Chtimes(file, time.Time{}, begun)
}

// content returns the remembered key of files that were picked from layers.
func (c cache) content(key string) (string, bool) {
	data, err := os.ReadFile(c.file("content", key))
	if err != nil || len(data) != 2*sha256.Size {
		return "", false
	}
	return string(data), true
}

func (c cache) putContent(key, content string) error {
	return writeCacheFile(c.file("content", key), []byte(content)) // one that is cut off has another length
}

func writeCacheFile(file string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return fmt.Errorf("write build cache: %w", err)
	}
	if err := atomicfile.WriteFile(file, data, 0o600); err != nil {
		return fmt.Errorf("write build cache: %w", err)
	}
	return nil
}

// sumsFile is where the contents of a context's files are remembered.
func (c cache) sumsFile(context string) string {
	name := sha256.Sum256([]byte(context))
	return filepath.Join(c.dir, "sums", hex.EncodeToString(name[:16]))
}
