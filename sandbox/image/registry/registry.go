package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Host says how one registry is reached.
type Host struct {
	// Mirrors are asked before the registry itself, in this order:
	// "host[:port][/prefix]". How a mirror is reached says its own Host.
	Mirrors []string `yaml:"mirrors" json:"mirrors,omitempty"`
	// Insecure allows plain HTTP and certificates nobody signed. A loopback
	// address needs it for neither.
	Insecure bool `yaml:"insecure" json:"insecure,omitempty"`
	// CA is a PEM file of certificates to trust beside the system's.
	CA string `yaml:"ca" json:"ca,omitempty"`
}

// Options are the same for all requests of one Repository.
type Options struct {
	// Hosts is by host name with port, as in image names ("docker.io").
	Hosts map[string]Host
	// Insecure is Host.Insecure for the origin.
	Insecure bool
	// Notify is told in one line why something is done again; nil: nobody is.
	Notify func(line string)
	// Backoff is the pause before the first repetition, doubled for each
	// further one; 0: half a second.
	Backoff time.Duration
	// Stall is how long a transfer may stand still; 0: a minute.
	Stall time.Duration
}

// Repository is one repository of a registry with its mirrors. Its methods may
// be called by several goroutines.
type Repository struct {
	endpoints []*endpoint // the origin last
	options   Options

	mu         sync.Mutex
	distrusted map[string]bool
}

// Open prepares the repository path at host, such as "library/debian" at
// "docker.io". It connects to nobody.
func Open(host, path string, o Options) (*Repository, error) {
	if o.Backoff == 0 {
		o.Backoff = 500 * time.Millisecond
	}
	if o.Stall == 0 {
		o.Stall = time.Minute
	}
	if o.Notify == nil {
		o.Notify = func(string) {}
	}
	r := &Repository{options: o, distrusted: map[string]bool{}}
	for _, mirror := range o.Hosts[host].Mirrors {
		mirrorHost, prefix, _ := strings.Cut(strings.TrimSuffix(mirror, "/"), "/")
		if prefix != "" {
			prefix += "/"
		}
		e, err := newEndpoint(mirrorHost, prefix+path, o.Hosts[mirrorHost], o)
		if err != nil {
			return nil, fmt.Errorf("mirror %q of %s: %w", mirror, host, err)
		}
		r.endpoints = append(r.endpoints, e)
	}
	own := o.Hosts[host]
	own.Insecure = own.Insecure || o.Insecure
	e, err := newEndpoint(host, path, own, o)
	if err != nil {
		return nil, err
	}
	r.endpoints = append(r.endpoints, e)
	return r, nil
}

func (r *Repository) origin() *endpoint { return r.endpoints[len(r.endpoints)-1] }

// Distrust says that what the endpoint sent was not what it should be: the
// others are asked from now on. false: it is the origin, there is nobody else.
func (r *Repository) Distrust(endpoint string) bool {
	if endpoint == "" || endpoint == r.origin().name() {
		return false
	}
	r.options.Notify("mirror " + endpoint + " sent something else than it should; asking others")
	r.mu.Lock()
	defer r.mu.Unlock()
	r.distrusted[endpoint] = true
	return true
}

func (r *Repository) trusted() []*endpoint {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []*endpoint
	for _, e := range r.endpoints {
		if e == r.origin() || !r.distrusted[e.name()] {
			list = append(list, e)
		}
	}
	return list
}

// each asks the endpoints in turn until one answers.
func (r *Repository) each(ctx context.Context, ask func(*endpoint) error) error {
	var errs []error
	for _, e := range r.trusted() {
		err := ask(e)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		if e != r.origin() {
			err = fmt.Errorf("mirror %s: %w", e.name(), err)
			r.options.Notify(err.Error())
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// endpoint is a repository at one host.
type endpoint struct {
	repo    name.Repository
	base    http.RoundTripper
	mu      sync.Mutex
	clients map[string]*http.Client // by scopes
}

func newEndpoint(host, path string, h Host, o Options) (*endpoint, error) {
	var options []name.Option
	if h.Insecure {
		options = append(options, name.Insecure)
	}
	repo, err := name.NewRepository(host+"/"+path, options...)
	if err != nil {
		return nil, err
	}
	base, err := newTransport(h, o)
	if err != nil {
		return nil, err
	}
	return &endpoint{repo: repo, base: base, clients: map[string]*http.Client{}}, nil
}

func (e *endpoint) name() string { return e.repo.Name() }

func (e *endpoint) url(parts ...string) string {
	return e.repo.Scheme() + "://" + e.repo.RegistryStr() + "/v2/" + e.repo.RepositoryStr() + "/" + strings.Join(parts, "/")
}

// client connects with these scopes: pings the registry, and fetches a token
// where it wants one.
func (e *endpoint) client(ctx context.Context, scopes ...string) (*http.Client, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	key := strings.Join(scopes, " ")
	if c := e.clients[key]; c != nil {
		return c, nil
	}
	auth, err := authn.Resolve(ctx, authn.DefaultKeychain, e.repo)
	if err != nil {
		return nil, fmt.Errorf("find credentials of %s: %w", e.repo.RegistryStr(), err)
	}
	rt, err := transport.NewWithContext(ctx, e.repo.Registry, auth, e.base, scopes)
	if err != nil {
		return nil, err
	}
	c := &http.Client{Transport: rt}
	e.clients[key] = c
	return c, nil
}

func (e *endpoint) pull(ctx context.Context) (*http.Client, error) {
	return e.client(ctx, e.repo.Scope(transport.PullScope))
}
