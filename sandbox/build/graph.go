package build

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
)

// errCanceled is the cause with which the stages end that another one's failure
// has made useless.
var errCanceled = errors.New("canceled")

// parallel is how many RUN steps may run at once. They mostly wait for disks
// and networks, so that few processors are no reason for few steps.
func (o Options) parallel() int {
	if o.Parallel > 0 {
		return o.Parallel
	}
	return max(4, runtime.GOMAXPROCS(0))
}

// walk builds the stages of a plan: each as soon as all that it needs is done.
// The first failure ends the others, and is the one that is returned. When walk
// returns, nothing of it runs any more.
func (b *build) walk(ctx context.Context, p *plan) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	b.running = make(chan struct{}, b.o.parallel())
	ready := make(map[*stage]chan struct{}, len(p.stages))
	for _, st := range p.stages {
		ready[st], b.done[st] = make(chan struct{}), &state{}
	}
	var first error
	var once sync.Once
	var all sync.WaitGroup
	for _, st := range p.stages {
		all.Go(func() {
			for _, need := range st.needs() {
				select {
				case <-ready[need]:
				case <-ctx.Done():
					return // whoever ended it says why
				}
			}
			if err := b.stage(ctx, st); err != nil {
				once.Do(func() {
					first = err
					cancel(fmt.Errorf("%w: another stage has failed", errCanceled))
				})
				return
			}
			close(ready[st])
		})
	}
	all.Wait()
	if first == nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return first
}

// slot waits until one more RUN may run. The caller gives it back by free.
func (b *build) slot(ctx context.Context) (free func(), err error) {
	select {
	case b.running <- struct{}{}:
		return func() { <-b.running }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// needs are the stages that must be done before this one begins.
func (st *stage) needs() []*stage {
	var list []*stage
	if st.base != nil {
		list = append(list, st.base)
	}
	for _, o := range st.from {
		if o.stage != nil {
			list = append(list, o.stage)
		}
	}
	return list
}
