package sp

import "errors"

// Errors of this package.
var (
	ErrConfig   = errors.New("configuration refused")
	ErrNoDevice = errors.New("no such device")
	// ErrUnfinished: another way to the next CA of the service was begun.
	ErrUnfinished = errors.New("something else is under way")
)
