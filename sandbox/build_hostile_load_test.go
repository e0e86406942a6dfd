package sandbox

import (
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"naru/sandbox/build"
	"naru/sandbox/network"
)

// appLoad is an app in a container behind a bridge, and clients that ask it without
// end. What they feel is printed: on a machine with neighbours it is no test.
type appLoad struct {
	url        string
	calm, busy latencies
	stop       chan struct{}
	done       sync.WaitGroup
}

type latencies struct {
	mu     sync.Mutex
	times  []time.Duration
	failed int
}

const (
	loadClients  = 4
	loadPause    = 10 * time.Millisecond // of each client, after each answer
	loadCalm     = 6 * time.Second
	loadRequests = 200_000 // at most
)

// serveApp is the app.
func serveApp() error {
	return http.ListenAndServe(":8080", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, strings.Repeat("hello ", 200))
	}))
}

// startLoad starts the app and measures how it answers while nothing else happens.
func (w *hostileWorld) startLoad() *appLoad {
	w.t.Helper()
	dir := writeContext(w.t, map[string]string{"Dockerfile": "FROM busybox\nCOPY --chmod=755 server /server\n"})
	must(w.t, os.WriteFile(dir+"/server", w.self, 0o755))
	img, log, err := buildIn(w.t, w.e, build.Options{Context: dir})
	if err != nil {
		w.t.Fatalf("%v\n%s", err, log)
	}
	c, err := w.e.Run(w.t.Context(), ContainerConfig{Image: img.ID.String(), Args: []string{"/server"}, Env: []string{hostileServer + "=1"}, Network: network.Default, Memory: 256 << 20}, Stdio{})
	must(w.t, err)
	l := &appLoad{url: "http://" + net.JoinHostPort(c.Address.String(), "8080"), stop: make(chan struct{})}
	eventually(w.t, "the app answers", func() bool {
		resp, err := http.Get(l.url)
		if err == nil {
			_ = resp.Body.Close()
		}
		return err == nil
	})
	calm := make(chan struct{})
	l.run(&l.calm, calm)
	time.Sleep(loadCalm)
	close(calm)
	l.done.Wait()
	l.run(&l.busy, l.stop)
	return l
}

func (l *appLoad) run(to *latencies, stop chan struct{}) {
	for range loadClients {
		l.done.Go(func() {
			client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
			defer client.CloseIdleConnections()
			for range loadRequests / loadClients {
				select {
				case <-stop:
					return
				case <-time.After(loadPause):
				}
				start := time.Now()
				resp, err := client.Get(l.url)
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
				to.mu.Lock()
				if to.times = append(to.times, time.Since(start)); err != nil || resp.StatusCode != http.StatusOK {
					to.failed++
				}
				to.mu.Unlock()
			}
		})
	}
}

func (l *latencies) quantile(q float64) time.Duration {
	slices.Sort(l.times)
	return l.times[min(len(l.times)-1, int(q*float64(len(l.times))))]
}

// report prints what the app's users felt; a failed request is a failed test.
func (l *appLoad) report(t *testing.T) {
	close(l.stop)
	l.done.Wait()
	for _, p := range []struct {
		name string
		l    *latencies
	}{{"calm", &l.calm}, {"beside hostile builds", &l.busy}} {
		t.Logf("app, %s: %d requests, %d failed, p50 %s, p99 %s", p.name, len(p.l.times), p.l.failed, p.l.quantile(0.5), p.l.quantile(0.99))
	}
	t.Logf("p99 is %.2f times that of calm", float64(l.busy.quantile(0.99))/float64(l.calm.quantile(0.99)))
	if l.busy.failed > 0 {
		t.Errorf("%d requests failed", l.busy.failed)
	}
}
