package sp

import "errors"

// Errors of this package.
var (
	ErrConfig   = errors.New("configuration refused")
	ErrNoDevice = errors.New("no such device")
)
