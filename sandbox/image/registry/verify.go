package registry

import (
	"context"
	"errors"
	"net/http"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Verify asks a registry whether it knows a user.
func Verify(ctx context.Context, host, user, password string, o Options) error {
	r, err := Open(host, "login", o) // any repository: the question is about none
	if err != nil {
		return err
	}
	e := r.origin()
	auth := authn.FromConfig(authn.AuthConfig{Username: user, Password: password})
	rt, err := transport.NewWithContext(ctx, e.repo.Registry, auth, e.base, nil)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.repo.Scheme()+"://"+e.repo.RegistryStr()+"/v2/", nil)
	if err != nil {
		return err
	}
	res, err := (&http.Client{Transport: rt}).Do(req)
	if err != nil {
		return err
	}
	return errors.Join(transport.CheckError(res, http.StatusOK), res.Body.Close())
}
