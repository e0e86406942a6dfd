package sandbox

import (
	"context"
	"errors"
)

// Reset kills and removes every container, and takes all networks of this Root
// out of the kernel. Images and volumes stay: afterwards the two directories
// are plain files, which may be deleted.
func (e *Engine) Reset(ctx context.Context) error {
	ids, err := e.ids()
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range ids {
		if err := e.Remove(ctx, id, true); err != nil && !errors.Is(err, ErrNotFound) {
			errs = append(errs, err)
		}
	}
	errs = append(errs, e.endEvents(ctx), e.sweepDirs(ctx), e.sweepClaims(ctx), e.networks.Teardown(ctx))
	return errors.Join(errs...)
}
