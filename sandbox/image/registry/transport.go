package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"
)

const (
	attempts = 5
	// longestWait bounds what a server's Retry-After can make us wait.
	longestWait = 2 * time.Minute
)

// newTransport makes the transport of one host.
func newTransport(h Host, o Options) (http.RoundTripper, error) {
	t := remote.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = 5 * o.Stall // a registry hashes a large upload before it answers
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if h.CA != "" {
		pool, err := withCA(h.CA)
		if err != nil {
			return nil, err
		}
		t.TLSClientConfig.RootCAs = pool
	}
	var next http.RoundTripper = t
	if h.Insecure {
		t.TLSClientConfig.InsecureSkipVerify = true // asked for; digests are still checked
	} else {
		next = &tlsOnly{t}
	}
	return &retrying{next: next, options: o}, nil
}

func withCA(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read ca: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // a machine without certificates
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read ca %s: no certificate in it", file)
	}
	return pool, nil
}

var errPlainHTTP = errors.New("refused to use plain HTTP; say that the registry is insecure to allow it")

// tlsOnly refuses plain HTTP except to loopback. go-containerregistry itself
// would try it with every private address, and send credentials that way.
type tlsOnly struct{ next http.RoundTripper }

func (t *tlsOnly) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !isLoopback(req.URL.Hostname()) {
		return nil, errPlainHTTP
	}
	return t.next.RoundTrip(req)
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// retrying repeats requests that may be repeated, after a pause.
type retrying struct {
	next    http.RoundTripper
	options Options
}

func (t *retrying) RoundTrip(req *http.Request) (*http.Response, error) {
	for n := 1; ; n++ {
		res, err := t.next.RoundTrip(req)
		wait, again := t.again(req, res, err, n)
		if !again {
			return res, err
		}
		reason := fmt.Sprint(err)
		if err == nil {
			reason = res.Status
			_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10)) // so that the connection can be used again
			_ = res.Body.Close()
		}
		t.options.Notify(fmt.Sprintf("%s: %s; retrying in %s", req.URL.Host, reason, wait.Round(100*time.Millisecond)))
		if err := Sleep(req.Context(), wait); err != nil {
			return nil, err
		}
		if req.GetBody != nil {
			body, err := req.GetBody()
			if err != nil {
				return nil, err
			}
			req = req.Clone(req.Context())
			req.Body = body
		}
	}
}

// again says whether to send the request another time, and when.
func (t *retrying) again(req *http.Request, res *http.Response, err error, n int) (time.Duration, bool) {
	if n >= attempts || req.Context().Err() != nil || req.Body != nil && req.Body != http.NoBody && req.GetBody == nil {
		return 0, false
	}
	wait := backoff(t.options.Backoff, n)
	if err != nil {
		// A POST or PUT that got no answer may have had its effect.
		return wait, passing(err) && (req.Method == http.MethodGet || req.Method == http.MethodHead)
	}
	switch res.StatusCode {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
	case http.StatusRequestTimeout, http.StatusInternalServerError, http.StatusBadGateway, http.StatusGatewayTimeout:
		if req.Method == http.MethodPatch {
			return 0, false
		}
	default:
		return 0, false
	}
	if asked, ok := retryAfter(res.Header.Get("Retry-After"), time.Now()); ok {
		wait = asked
	}
	return wait, wait <= longestWait
}

// retryAfter reads the header: seconds or a date (RFC 9110, 10.2.3).
func retryAfter(value string, now time.Time) (time.Duration, bool) {
	if seconds, err := strconv.Atoi(value); err == nil && seconds >= 0 {
		return time.Duration(seconds) * time.Second, true
	}
	if when, err := http.ParseTime(value); err == nil {
		return max(0, when.Sub(now)), true
	}
	return 0, false
}

// backoff doubles from base, and differs a little between clients that failed
// together.
func backoff(base time.Duration, n int) time.Duration {
	d := base << min(n-1, 6)
	return d/2 + rand.N(d/2+1)
}

// passing says whether an error of the transport may be gone in a moment.
func passing(err error) bool {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var host x509.HostnameError
	var record tls.RecordHeaderError
	var dns *net.DNSError
	switch {
	case errors.Is(err, errPlainHTTP), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded),
		errors.As(err, &unknown), errors.As(err, &invalid), errors.As(err, &host), errors.As(err, &record),
		strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return false
	case errors.As(err, &dns) && dns.IsNotFound:
		return false
	}
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" && !dial.Timeout() {
		return false // nobody listens: the ping of the other scheme, or a mirror that is off
	}
	return true
}

// Sleep waits for d, or returns the error of a context that ends before.
func Sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
