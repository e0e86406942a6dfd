package build

import (
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
const keyVersion = "naru step 1"

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
// knows the key could make the layer. Concurrent builds may both miss and both
// write; either record is right.
type cache struct{ dir string }

// record is what is remembered of a step.
type record struct {
	Layer   digest.Digest `json:"layer,omitempty"` // empty: the step changed no file
	Created time.Time     `json:"created"`         // when the layer was made first
}

func (c cache) file(kind, key string) string { return filepath.Join(c.dir, kind, key[:2], key) }

// step returns what is remembered under a key. What cannot be read is a miss.
func (c cache) step(key string) (record, bool) {
	var r record
	data, err := os.ReadFile(c.file("steps", key))
	if err != nil || json.Unmarshal(data, &r) != nil {
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
	return writeCacheFile(c.file("steps", key), data)
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
	return writeCacheFile(c.file("content", key), []byte(content))
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
