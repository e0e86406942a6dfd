package registry

import (
	"context"
	"errors"
	"net/http"
	"testing"
)

// go-containerregistry falls back to plain HTTP for private addresses; we do
// only where it was asked for or nothing leaves the machine.
func TestPlainHTTPIsForLoopbackAndInsecureOnly(t *testing.T) {
	for _, test := range []struct {
		url      string
		insecure bool
		refused  bool
	}{
		{"http://127.0.0.1:1/v2/", false, false}, {"http://localhost:1/v2/", false, false}, {"http://[::1]:1/v2/", false, false},
		{"http://10.0.0.1/v2/", false, true}, {"http://registry.example/v2/", false, true}, {"http://127.0.0.1.example/v2/", false, true},
	} {
		var asked bool
		next := roundTrip(func(*http.Request) (*http.Response, error) { asked = true; return nil, errors.New("asked") })
		req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, test.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (&tlsOnly{next}).RoundTrip(req); err == nil || asked == test.refused {
			t.Errorf("%s: asked %v, %v", test.url, asked, err)
		}
	}
	rt, err := newTransport(Host{Insecure: true}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := rt.(*retrying).next.(*tlsOnly); ok {
		t.Error("insecure still refuses")
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
