package api

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gin-gonic/gin"

	"naru/agent/store"
)

// Keys of the request's context for who calls.
const (
	callerName = "caller"
	callerID   = "caller-id"
)

// authorized lets a request pass that has a valid bearer token, and every one
// of a trusted listener.
func (s *server) authorized(c *gin.Context) {
	if s.trusted {
		c.Set(callerName, "root")
		c.Set(callerID, "local")
		c.Next()
		return
	}
	scheme, token, _ := strings.Cut(c.GetHeader("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		c.Header("WWW-Authenticate", `Bearer realm="naru"`)
		s.refuse(c, "a token is needed: Authorization: Bearer naru_…")
		return
	}
	t, err := s.store.CheckToken(c.Request.Context(), strings.TrimSpace(token))
	if errors.Is(err, store.ErrToken) {
		c.Header("WWW-Authenticate", `Bearer realm="naru", error="invalid_token"`)
		s.refuse(c, "the token is not valid")
		return
	}
	if err != nil {
		s.internal(c, err)
		return
	}
	c.Set(callerName, t.Name)
	c.Set(callerID, t.ID)
	c.Next()
}

// refuse answers 401, or 429 to an address that is refused too often. Good
// credentials always pass, so that nobody can lock others out.
func (s *server) refuse(c *gin.Context, detail string) {
	if wait := s.failures.failed(c.ClientIP(), time.Now()); wait > 0 {
		c.Header("Retry-After", strconv.Itoa(int(wait.Seconds())+1))
		s.problem(c, http.StatusTooManyRequests, "too many refused requests from this address")
		return
	}
	s.problem(c, http.StatusUnauthorized, detail)
}

// limiter counts failures per address: burst at once, then one each every.
type limiter struct {
	burst int
	every time.Duration
	mu    sync.Mutex
	free  map[string]time.Time // when the address has its whole burst again
}

// maxAddresses bounds the memory of the limiter.
const maxAddresses = 10_000

func newLimiter(burst int, every time.Duration) *limiter {
	return &limiter{burst: burst, every: every, free: map[string]time.Time{}}
}

// failed notes a failure and returns how long the address has to wait; 0 while
// it is within its limit.
func (l *limiter) failed(address string, now time.Time) time.Duration {
	// An IPv6 user has at least a /64 of addresses.
	if ip := net.ParseIP(address); ip != nil && ip.To4() == nil {
		address = ip.Mask(net.CIDRMask(64, 128)).String()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.free) >= maxAddresses {
		for a, t := range l.free {
			if !t.After(now) {
				delete(l.free, a)
			}
		}
	}
	free := l.free[address]
	if free.Before(now) {
		free = now
	}
	if wait := free.Add(l.every).Sub(now) - time.Duration(l.burst)*l.every; wait > 0 {
		return wait
	}
	if _, ok := l.free[address]; ok || len(l.free) < maxAddresses {
		l.free[address] = free.Add(l.every)
	}
	return 0
}

// stopKey holds the context whose end says that the server shuts down.
type stopKey struct{}

// stopping returns a channel that is closed when the server shuts down; streams
// and long polls then end by themselves.
func stopping(ctx context.Context) <-chan struct{} {
	if stop, ok := ctx.Value(stopKey{}).(context.Context); ok {
		return stop.Done()
	}
	return nil
}
