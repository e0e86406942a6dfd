// Package load is a strict HTTP/1.1 load client that counts lost requests.
//
// It writes and reads raw bytes on its own TCP connections. net/http would not do:
// its client silently sends a request again when a kept connection turns out to be
// dead, and so hides exactly what is to be measured. Here nothing is ever sent
// twice. A request is lost when it was written, or its connection was dialled, and
// no complete answer below 500 came back.
//
// The life of one request: a client takes its open connection, or dials; it looks
// whether the server has closed it (unless Blind: then it just writes); it writes
// head and body in one call; it reads the status line, the headers and the whole
// body; "Connection: close", or a server that closes first, ends the connection,
// and the next request dials.
//
// Three kinds of clients: busy ones send again at once on a kept connection;
// early ones connect, stay silent for up to EarlyWait, and only then send a few
// requests; thinkers pause up to Think between requests on a kept connection.
//
// It talks to loopback addresses only and always ends: by count or by time.
package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

// Options is one run. Zero values have the defaults named.
type Options struct {
	Addr string // "127.0.0.1:8080"; loopback only
	Host string // the Host header; default Addr
	Path string // default "/"

	Clients  int // busy clients; default 24 when all three are 0
	Early    int // clients that connect first and send later; default 8 when all three are 0
	Thinkers int // clients that pause between requests

	PostPercent int           // requests with a body, in percent; default 30, negative: none
	Pause       time.Duration // longest pause of a busy client; default 5 ms
	EarlyWait   time.Duration // longest silence after connecting; default 3 s
	Think       time.Duration // longest pause of a thinker; default 1.5 s
	Blind       bool          // never look before writing on a kept connection
	Timeout     time.Duration // for one request; default 15 s

	Duration time.Duration // default 10 s, at most 30 min
	Requests int64         // stop after so many; 0: by Duration alone
}

const longest = 30 * time.Minute

func (o Options) complete() (Options, error) {
	addr, err := netip.ParseAddrPort(o.Addr)
	if err != nil {
		return o, fmt.Errorf("load address: %w", err)
	}
	if !addr.Addr().IsLoopback() {
		return o, fmt.Errorf("load address %v: only loopback may be loaded", addr)
	}
	if o.Host == "" {
		o.Host = o.Addr
	}
	if o.Path == "" {
		o.Path = "/"
	}
	if o.Clients+o.Early+o.Thinkers == 0 {
		o.Clients, o.Early = 24, 8
	}
	if n := o.Clients + o.Early + o.Thinkers; n > 10000 {
		return o, fmt.Errorf("load with %d clients: at most 10000", n)
	}
	if o.PostPercent == 0 {
		o.PostPercent = 30
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&o.Pause, 5 * time.Millisecond}, {&o.EarlyWait, 3 * time.Second}, {&o.Think, 1500 * time.Millisecond},
		{&o.Timeout, 15 * time.Second}, {&o.Duration, 10 * time.Second},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	o.Duration = min(o.Duration, longest)
	return o, nil
}

// Run loads Addr until the time is over, Requests were sent, or ctx ends, lets
// every request under way finish, and reports. Its error is about the options only:
// lost requests are in the report.
func Run(ctx context.Context, o Options) (Report, error) {
	o, err := o.complete()
	if err != nil {
		return Report{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.Duration)
	defer cancel()
	t := &tally{limit: o.Requests, stop: cancel, report: Report{Lost: map[Loss]int64{}, Versions: map[string]Seen{}}}
	began := time.Now()
	var group sync.WaitGroup
	start := func(n int, life func(*client, context.Context)) {
		for range n {
			c := &client{options: o, tally: t, random: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))}
			group.Go(func() {
				defer c.drop()
				life(c, ctx)
			})
		}
	}
	start(o.Clients, (*client).busy)
	start(o.Early, (*client).early)
	start(o.Thinkers, (*client).think)
	group.Wait()
	t.report.Took = time.Since(began)
	return t.report, nil
}

func (c *client) busy(ctx context.Context) {
	for ctx.Err() == nil {
		c.request(ctx)
		c.pause(ctx, c.options.Pause)
	}
}

func (c *client) early(ctx context.Context) {
	for ctx.Err() == nil {
		if !c.connect(ctx) {
			c.pause(ctx, c.options.Pause)
			continue
		}
		c.pause(ctx, c.options.EarlyWait)
		// Also its later requests count: the first one may have been promised a
		// kept connection by a worker that is about to go.
		for range 1 + c.random.IntN(4) {
			if ctx.Err() == nil {
				c.request(ctx)
			}
		}
		c.drop()
	}
}

func (c *client) think(ctx context.Context) {
	for ctx.Err() == nil {
		c.request(ctx)
		c.pause(ctx, c.options.Think)
	}
}

// pause waits for a random time up to longest.
func (c *client) pause(ctx context.Context, longest time.Duration) {
	t := time.NewTimer(time.Duration(c.random.Int64N(int64(longest) + 1)))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

var errShort = errors.New("short answer")
