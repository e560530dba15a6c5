package issue

import "errors"

// Errors of issuing. They are wrapped with what was expected, what came and what to do.
var (
	ErrName        = errors.New("name not allowed in a certificate of this service")
	ErrLife        = errors.New("life outside the service's limits")
	ErrCAEnding    = errors.New("the service's CA ends too soon to issue")
	ErrKeyInUse    = errors.New("this key is certified for another device")
	ErrKeyRevoked  = errors.New("the certificate of this key was revoked")
	ErrReplayed    = errors.New("this request was answered before")
	ErrNotIssued   = errors.New("no such certificate was issued here")
	ErrRevoked     = errors.New("the certificate is revoked already")
	ErrDuplicate   = errors.New("this key has a current certificate already")
	ErrCA          = errors.New("not fit to be a service's CA")
	ErrMalformed   = errors.New("malformed OCSP request")
	ErrUnknownCA   = errors.New("not a CA of this responder")
	ErrRootOffline = errors.New("the root's key is not here")
	ErrCAEnded     = errors.New("the CA has ended")                           // an ErrCA
	ErrUnavailable = errors.New("a signing key cannot be used at the moment") // on a token that is away, say: ask again
)
