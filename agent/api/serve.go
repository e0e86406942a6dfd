package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

// shutdownTime is how long requests under way may take to end at a shutdown.
const shutdownTime = 10 * time.Second

// Serve answers requests on l until ctx ends, lets those under way end, and
// returns when all have. Streams and long polls end at once.
func Serve(ctx context.Context, l net.Listener, handler http.Handler) error {
	base := context.WithValue(context.WithoutCancel(ctx), stopKey{}, ctx)
	srv := &http.Server{
		Handler: handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return base },
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve %s: %w", l.Addr(), err)
		}
		return nil
	})
	g.Go(func() error {
		<-gctx.Done()
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
		defer cancel()
		err := srv.Shutdown(limit)
		if errors.Is(err, context.DeadlineExceeded) {
			err = srv.Close() // the rest is cut
		}
		return err
	})
	return g.Wait()
}
