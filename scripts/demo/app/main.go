// Command app is the small web service that the demo deploys. It answers every
// request with the text of the VERSION file beside it; when that text contains
// "sick", its health check fails; when it contains "fading", it fails from the
// seventh time on. On SIGTERM it stops to listen, ends what is in flight, and
// exits with 0.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		os.Exit(1)
	}
}

func run() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(self), "VERSION"))
	if err != nil {
		return err
	}
	version := strings.TrimSpace(string(text))
	srv := &http.Server{Addr: ":" + os.Getenv("PORT"), Handler: handler(version), ReadHeaderTimeout: 10 * time.Second}

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- srv.ListenAndServe() }()
	fmt.Println("app", version, "listens on", srv.Addr)
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err = srv.Shutdown(limit)
	if serving := <-ended; !errors.Is(serving, http.ErrServerClosed) {
		err = errors.Join(err, serving)
	}
	return err
}

func handler(version string) http.Handler {
	mux := http.NewServeMux()
	var asked atomic.Int64
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		n := asked.Add(1)
		if strings.Contains(version, "sick") || strings.Contains(version, "fading") && n > 6 {
			http.Error(w, "this version never gets healthy", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		w.Header().Set("X-Version", version)
		fmt.Fprintln(w, version)
	})
	return mux
}
