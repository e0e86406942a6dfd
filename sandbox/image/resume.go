package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"naru/sandbox/image/registry"
)

// partial is a layer's bytes as far as they came, under the digest that they
// will have: partial/H, flocked by the one that fetches it. It outlives its
// process, so that the next pull goes on where this one was cut off. Nothing
// in it is believed before the digest of the whole is right.
type partial struct {
	store  *Store
	desc   ocispec.Descriptor
	file   *os.File
	have   int64
	stored bool // file is the blob of the store, from a pull that was killed after it
}

// openPartial waits until nobody else fetches the blob.
func (s *Store) openPartial(ctx context.Context, desc ocispec.Descriptor, waiting func()) (*partial, error) {
	for n := 0; ; n++ {
		f, err := os.OpenFile(s.partialPath(desc.Digest), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		err = flock(f, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			p := &partial{store: s, desc: desc, file: f}
			if ok, err := p.current(); ok && err == nil {
				return p, p.measure()
			} else if err != nil {
				return nil, errors.Join(err, f.Close())
			}
		} else if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock partial layer: %w", err), f.Close())
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
		if n == 1 {
			waiting()
		}
		const poll = 50 * time.Millisecond // flock(2) cannot be waited for together with a context
		if err := registry.Sleep(ctx, poll); err != nil {
			return nil, err
		}
	}
}

func (s *Store) partialPath(d digest.Digest) string { return s.path("partial", d.Encoded()) }

// current says whether the locked file is still the one with the name: its
// last owner may have moved it into the store.
func (p *partial) current() (bool, error) {
	own, err := p.file.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Stat(p.file.Name())
	if err != nil {
		return false, ignoreMissing(err)
	}
	return os.SameFile(own, named), nil
}

// measure finds out what is here, in the file or in the store.
func (p *partial) measure() error {
	var blob *os.File
	err := p.store.locked(unix.LOCK_SH, func() (err error) {
		path := p.store.blobPath(p.desc.Digest)
		if blob, err = os.Open(path); err != nil {
			return ignoreMissing(err)
		}
		return os.Chtimes(path, time.Time{}, time.Now()) // held from now on
	})
	if err != nil {
		return errors.Join(err, p.Close())
	}
	if blob != nil {
		err := os.Remove(p.file.Name())
		err = errors.Join(err, p.file.Close())
		p.file, p.have, p.stored = blob, p.desc.Size, true
		return err
	}
	st, err := p.file.Stat()
	if err == nil && st.Size() > p.desc.Size {
		err = p.file.Truncate(0)
	} else if err == nil {
		p.have = st.Size()
	}
	if err != nil {
		return errors.Join(err, p.Close())
	}
	return nil
}

// reset throws away what is here: it was not the begin of the blob.
func (p *partial) reset() error {
	if p.stored {
		if err := errors.Join(ignoreMissing(os.Remove(p.store.blobPath(p.desc.Digest))), p.file.Close()); err != nil {
			return err
		}
		f, err := os.OpenFile(p.store.partialPath(p.desc.Digest), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		p.file, p.stored = f, false
		if err := flock(f, unix.LOCK_EX); err != nil {
			return err
		}
	}
	p.have = 0
	return p.file.Truncate(0)
}

// reader gives the whole blob: what is here, then what more gives from there
// on, which is kept as it comes.
func (p *partial) reader(more io.Reader) io.Reader {
	local := io.NewSectionReader(p.file, 0, p.have)
	if p.stored {
		return local
	}
	return io.MultiReader(local, io.TeeReader(more, io.NewOffsetWriter(p.file, p.have)))
}

// Close unlocks it. An empty one, or one whose layer is in the store, goes.
func (p *partial) Close() error {
	if st, err := p.file.Stat(); err == nil && st.Size() == 0 && !p.stored {
		_ = os.Remove(p.file.Name()) // locked, so nobody else uses it; one that stays costs nothing
	}
	return p.file.Close()
}

// resuming reads a blob of a registry from an offset to its end. Where the
// connection is cut it goes on with another request from there.
type resuming struct {
	ctx   context.Context // of the one read that this is
	open  func(ctx context.Context, offset int64) (registry.Blob, error)
	again func(err error) // told before each further request
	at    int64
	size  int64
	pause time.Duration

	blob     registry.Blob
	failures int // since a byte came
	cuts     int
}

var errTooLong = errors.New("it is longer than its manifest says")

func (r *resuming) Read(p []byte) (int, error) {
	for {
		n, err := r.read(p)
		if n > 0 {
			r.failures = 0
			return n, nil
		}
		if err == nil || errors.Is(err, io.EOF) || errors.Is(err, errTooLong) {
			return n, err
		}
		const maxFailures, maxCuts = 5, 100
		r.failures++
		r.cuts++
		var answer *transport.Error // repeated below already, where that may help
		if r.ctx.Err() != nil || errors.As(err, &answer) || r.failures >= maxFailures || r.cuts >= maxCuts {
			return 0, &transportError{err}
		}
		r.again(err)
		if err := registry.Sleep(r.ctx, r.pause<<(r.failures-1)); err != nil {
			return 0, &transportError{err}
		}
	}
}

func (r *resuming) read(p []byte) (int, error) {
	if r.blob.ReadCloser == nil {
		if r.at == r.size {
			return 0, io.EOF
		}
		blob, err := r.open(r.ctx, r.at)
		if err != nil {
			return 0, err
		}
		r.blob = blob
	}
	n, err := r.blob.Read(p)
	r.at += int64(n)
	switch {
	case r.at > r.size:
		return 0, errTooLong
	case errors.Is(err, io.EOF) && r.at == r.size:
		return n, io.EOF
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		err = errors.Join(err, r.Close())
	}
	return n, err
}

// Close ends the request that is open, if one is.
func (r *resuming) Close() error {
	if r.blob.ReadCloser == nil {
		return nil
	}
	body := r.blob.ReadCloser
	r.blob.ReadCloser = nil
	_ = body.Close() // what was read is verified; a late complaint changes nothing
	return nil
}

// ours says whether an error is this machine's, and no judgement of what came.
func ours(err error) bool {
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EIO} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// transportError marks an error of reading as the other side's: what came
// before it may be right.
type transportError struct{ err error }

func (e *transportError) Error() string { return e.err.Error() }
func (e *transportError) Unwrap() error { return e.err }
