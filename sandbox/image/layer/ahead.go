package layer

import "io"

// ahead writes to w from a goroutine of its own, so that whoever makes a tar reads the
// next files while the last ones are hashed or compressed. It has to be closed, and
// writes nothing after that.
type ahead struct {
	block  []byte      // is being filled
	full   chan []byte // to be written, in order
	empty  chan []byte
	failed chan error // gets the first error, once
	ended  chan struct{}
	err    error
}

// aheadBlocks of aheadSize bytes are on their way at most.
const (
	aheadSize   = 128 << 10
	aheadBlocks = 4
)

func newAhead(w io.Writer) *ahead {
	a := &ahead{
		full: make(chan []byte, aheadBlocks), empty: make(chan []byte, aheadBlocks),
		failed: make(chan error, 1), ended: make(chan struct{}),
	}
	for range aheadBlocks {
		a.empty <- nil // made when it is needed: most layers are small
	}
	go a.write(w)
	return a
}

// write ends when the channel of full blocks is closed. After an error it goes on to
// take blocks, so that nobody waits for ever.
func (a *ahead) write(w io.Writer) {
	defer close(a.ended)
	var err error
	for block := range a.full {
		if err == nil {
			if _, err = w.Write(block); err != nil {
				a.failed <- err
			}
		}
		a.empty <- block[:0]
	}
}

func (a *ahead) Write(p []byte) (n int, err error) {
	n = len(p)
	for len(p) > 0 {
		if a.block == nil {
			if a.block = <-a.empty; a.block == nil {
				a.block = make([]byte, 0, aheadSize)
			}
		}
		part := min(len(p), aheadSize-len(a.block))
		a.block, p = append(a.block, p[:part]...), p[part:]
		if len(a.block) == aheadSize {
			if err := a.flush(); err != nil {
				return n - len(p), err
			}
		}
	}
	return n, nil
}

// flush hands the block over. The error is that of an earlier one.
func (a *ahead) flush() error {
	if a.err == nil {
		select {
		case a.err = <-a.failed:
		default:
		}
	}
	if len(a.block) > 0 {
		a.full <- a.block
		a.block = nil
	}
	return a.err
}

// close waits until all is written.
func (a *ahead) close() error {
	err := a.flush()
	close(a.full)
	<-a.ended
	if err == nil {
		select {
		case err = <-a.failed:
		default:
		}
	}
	return err
}
