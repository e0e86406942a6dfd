package fetch

import (
	"context"
	"crypto/sha256"
	_ "crypto/sha512" // for digests that callers pin
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"naru/internal/atomicfile"
	"naru/internal/smallfile"
)

// Limits bound one request, and what is kept of all. A zero means the default.
type Limits struct {
	Bytes int64         // of one file; default 4 GiB
	Kept  int64         // bytes of all kept files; default 4 GiB
	Time  time.Duration // of one request with all redirects; default 15 minutes
}

const (
	defaultBytes = 4 << 30
	defaultTime  = 15 * time.Minute
	maxRedirects = 10
	maxMeta      = 64 << 10
)

// Client gets files. It may be used by several goroutines and processes at once.
type Client struct {
	dir    string
	limits Limits
	http   *http.Client
}

// New returns a client that keeps files in dir, which may be removed at any time
// when no build runs.
func New(dir string, g Guard, l Limits) *Client {
	if l.Bytes == 0 {
		l.Bytes = defaultBytes
	}
	if l.Kept == 0 {
		l.Kept = defaultBytes
	}
	if l.Time == 0 {
		l.Time = defaultTime
	}
	return &Client{dir: dir, limits: l, http: &http.Client{Transport: g.Transport(), CheckRedirect: checkRedirect}}
}

func checkRedirect(r *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	if via[len(via)-1].URL.Scheme == "https" && r.URL.Scheme != "https" {
		return fmt.Errorf("redirect from https to %s", r.URL.Redacted())
	}
	return nil
}

// File is a file that was fetched: Name in the directory Dir. It stays there
// until Close.
type File struct {
	Dir, Name string
	SHA256    [sha256.Size]byte
	// Modified is what the server says of its age; zero: nothing.
	Modified time.Time
	lock     *os.File
	client   *Client
}

// Close lets the file go, sooner or later.
func (f *File) Close() error {
	err := f.lock.Close()
	f.client.http.CloseIdleConnections()
	return errors.Join(err, f.client.prune())
}

// meta is what is kept of a response.
type meta struct {
	ETag         string        `json:"etag,omitempty"`
	LastModified string        `json:"lastModified,omitempty"`
	Digest       digest.Digest `json:"digest"` // names the file too
}

func (m *meta) file() string { return "data-" + m.Digest.Encoded() }

const metaFile = "meta.json"

// Get fetches a URL. With a digest (sha256, sha384, sha512) a file of another
// content is an error; empty: any. Credentials in the URL are not in errors.
func (c *Client) Get(ctx context.Context, rawURL string, want digest.Digest) (*File, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, errors.New("fetch: the URL cannot be parsed") // url.Parse quotes it
	}
	f, err := c.get(ctx, u, want)
	var inner *url.Error // quotes the URL without its password, and so do we
	if errors.As(err, &inner) {
		err = inner.Err
	}
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", u.Redacted(), err)
	}
	return f, nil
}

func (c *Client) get(ctx context.Context, u *url.URL, want digest.Digest) (f *File, err error) {
	if want != "" {
		if err := want.Validate(); err != nil {
			return nil, fmt.Errorf("checksum %q: %w", want, err)
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.limits.Time, fmt.Errorf("took longer than %s", c.limits.Time))
	defer cancel()
	id := sha256.Sum256([]byte(u.String()))
	dir := filepath.Join(c.dir, hex.EncodeToString(id[:16]))
	lock, err := holdDir(dir)
	if err != nil {
		return nil, err
	}
	f = &File{Dir: dir, lock: lock, client: c}
	defer func() {
		if err != nil {
			lock.Close() // nothing was written to it
			c.http.CloseIdleConnections()
			if cause := context.Cause(ctx); cause != nil && ctx.Err() != nil {
				err = cause
			}
		}
	}()
	kept, ok := f.kept()
	if ok && want != "" && f.verify(want) == nil {
		return f, nil
	}
	if err := c.request(ctx, u, f, kept); err != nil {
		return nil, err
	}
	if want != "" {
		if err := f.verify(want); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// holdDir makes a directory that prune leaves alone. One that was removed before
// the lock was had is made again.
func holdDir(dir string) (*os.File, error) {
	for {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		lock, err := lockDir(dir, unix.LOCK_SH)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		held, err1 := lock.Stat()
		there, err2 := os.Stat(dir)
		if err1 == nil && err2 == nil && os.SameFile(held, there) {
			return lock, nil
		}
		if err := errors.Join(lock.Close(), err1); err != nil {
			return nil, err
		}
	}
}

// lockDir opens a directory and locks it.
func lockDir(dir string, how int) (*os.File, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(d.Fd()), how); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// kept finds what is there from the last time, if it is still what it was.
func (f *File) kept() (meta, bool) {
	var m meta
	in, err := os.Open(filepath.Join(f.Dir, metaFile))
	if err != nil {
		return m, false
	}
	defer in.Close() // read only: nothing can be lost
	data, err := smallfile.Read(in, maxMeta)
	if err != nil || json.Unmarshal(data, &m) != nil || m.Digest.Validate() != nil || m.Digest.Algorithm() != digest.SHA256 {
		return meta{}, false
	}
	if err := f.use(m); err != nil || f.verify(m.Digest) != nil {
		return meta{}, false
	}
	return m, true
}

// use makes f the file that m describes.
func (f *File) use(m meta) error {
	sum, err := hex.DecodeString(m.Digest.Encoded())
	if err != nil {
		return err
	}
	f.Name, f.SHA256, f.Modified = m.file(), [sha256.Size]byte(sum), time.Time{}
	if t, err := http.ParseTime(m.LastModified); err == nil {
		f.Modified = t
	}
	return nil
}

// verify reads the file and compares its digest.
func (f *File) verify(want digest.Digest) error {
	in, err := os.Open(filepath.Join(f.Dir, f.Name))
	if err != nil {
		return err
	}
	defer in.Close() // read only: nothing can be lost
	got, err := want.Algorithm().FromReader(in)
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("digest mismatch: got %s, want %s", got, want)
	}
	return nil
}

// request asks the server; kept is what need not be sent again.
func (c *Client) request(ctx context.Context, u *url.URL, f *File, kept meta) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	r.Header.Set("User-Agent", "naru")
	if kept.ETag != "" {
		r.Header.Set("If-None-Match", kept.ETag)
	}
	if kept.LastModified != "" {
		r.Header.Set("If-Modified-Since", kept.LastModified)
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close() // read only: nothing can be lost
	if resp.StatusCode == http.StatusNotModified && kept.Digest != "" {
		now := time.Now()
		_ = os.Chtimes(filepath.Join(f.Dir, metaFile), now, now) // it goes the later; nothing else hangs on it
		return nil
	}
	if resp.StatusCode < 200 || resp.StatusCode >= 300 {
		return fmt.Errorf("the server answers %s", resp.Status)
	}
	return c.save(f, resp)
}

// save streams a response into the directory.
func (c *Client) save(f *File, resp *http.Response) error {
	if resp.ContentLength > c.limits.Bytes {
		return fmt.Errorf("%d bytes are more than the %d that are allowed", resp.ContentLength, c.limits.Bytes)
	}
	out, err := os.CreateTemp(f.Dir, "new-")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name()) // it is gone when all went well
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(out, h), io.LimitReader(resp.Body, c.limits.Bytes+1))
	if err == nil && n > c.limits.Bytes {
		err = fmt.Errorf("more than the %d bytes that are allowed", c.limits.Bytes)
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	m := meta{ETag: resp.Header.Get("ETag"), LastModified: resp.Header.Get("Last-Modified"), Digest: digest.NewDigest(digest.SHA256, h)}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := os.Rename(out.Name(), filepath.Join(f.Dir, m.file())); err != nil {
		return err
	}
	if len(data) <= maxMeta {
		if err := atomicfile.WriteFile(filepath.Join(f.Dir, metaFile), data, 0o600); err != nil {
			return err
		}
	}
	return f.use(m)
}

// prune removes the files that were asked for longest ago while there are too
// many, and old versions. What somebody uses stays.
func (c *Client) prune() error {
	list, err := os.ReadDir(c.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("prune fetched files: %w", err)
	}
	var all []keptDir
	total := int64(0)
	for _, e := range list {
		k := look(filepath.Join(c.dir, e.Name()))
		total += k.size
		all = append(all, k)
	}
	return removeOldest(all, total-c.limits.Kept)
}
