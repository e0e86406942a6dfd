package build

import "errors"

func isLocal(arg string) bool { return !remote.MatchString(arg) }

func (t *transfer) checkRemote(arg string) error {
	if err := refuseRemote(t.name, []string{arg}); err != nil {
		return errors.New(err.Error())
	}
	return nil
}
