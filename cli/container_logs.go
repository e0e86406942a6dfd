package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"naru/pipeline/target/local"
	"naru/sandbox"
	"naru/sandbox/runtime"
)

// logsFlags are the flags of logs.
type logsFlags struct {
	follow, timestamps bool
	tail, since        string
}

func logsCommand(env *Env) *cobra.Command {
	f := logsFlags{}
	c := &cobra.Command{
		Use:   "logs CONTAINER|APP",
		Short: "Show what a container, or every replica of an app, has written",
		Args:  cobra.ExactArgs(1),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			options, err := f.options()
			if err != nil {
				return err
			}
			err = e.Logs(ctx, args[0], options, env.Stdout, env.Stderr)
			if errors.Is(err, sandbox.ErrNotFound) {
				err = appLogs(ctx, env, e, args[0], options)
			}
			if ctx.Err() != nil {
				return nil // the person has seen enough
			}
			return err
		}),
	}
	c.Flags().BoolVarP(&f.follow, "follow", "f", false, "go on until the container ends")
	c.Flags().StringVarP(&f.tail, "tail", "n", "all", "lines from the end to begin with")
	c.Flags().BoolVarP(&f.timestamps, "timestamps", "t", false, "put the time before each line")
	c.Flags().StringVar(&f.since, "since", "", "skip what is older: a duration (10m) or a time (RFC 3339)")
	return c
}

func (f logsFlags) options() (runtime.LogOptions, error) {
	o := runtime.LogOptions{Follow: f.follow, Timestamps: f.timestamps}
	if f.tail != "all" && f.tail != "" {
		n, err := strconv.Atoi(f.tail)
		if err != nil || n < 0 {
			return o, usage("--tail %q: want a number or all", f.tail)
		}
		if o.Tail = n; n == 0 {
			o.Since = time.Now() // no line of the past
		}
	}
	if f.since == "" {
		return o, nil
	}
	if d, err := time.ParseDuration(f.since); err == nil {
		o.Since = time.Now().Add(-d)
		return o, nil
	}
	t, err := time.Parse(time.RFC3339Nano, f.since)
	if err != nil {
		return o, usage("--since %q: want a duration or a time", f.since)
	}
	o.Since = t
	return o, nil
}

// appLogs shows what the replicas of an app have written, each line with its
// replica's name.
func appLogs(ctx context.Context, env *Env, e *sandbox.Engine, app string, o runtime.LogOptions) error {
	list, err := e.List(ctx, true, map[string]string{local.LabelApp: app})
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return fmt.Errorf("no container and no app is called %s", app)
	}
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	for _, c := range list {
		group.Go(func() error {
			out := &prefixWriter{mu: &mu, to: env.Stdout, prefix: c.Name + " | "}
			return errors.Join(e.Logs(ctx, c.ID, o, out, out), out.flush())
		})
	}
	return group.Wait()
}

// prefixWriter puts a prefix before every line. Several share a mutex, so that
// their lines stay whole.
type prefixWriter struct {
	mu     *sync.Mutex
	to     io.Writer
	prefix string
	rest   []byte // a line without its end
}

// Write passes whole lines on and keeps the rest.
func (w *prefixWriter) Write(p []byte) (int, error) {
	w.rest = append(w.rest, p...)
	for {
		i := bytes.IndexByte(w.rest, '\n')
		if i < 0 {
			return len(p), nil
		}
		if err := w.line(w.rest[:i+1]); err != nil {
			return 0, err
		}
		w.rest = w.rest[i+1:]
	}
}

func (w *prefixWriter) line(text []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.to.Write(append([]byte(w.prefix), text...))
	return err
}

// flush writes a last line that has no end.
func (w *prefixWriter) flush() error {
	if len(w.rest) == 0 {
		return nil
	}
	return w.line(append(w.rest, '\n'))
}
