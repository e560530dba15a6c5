//go:build !amd64

package tun

// onesSum returns the folded one's complement sum (RFC 1071) of b plus initial, not inverted.
func onesSum(b []byte, initial uint16) uint16 { return scalarSum(b, initial) }
