// Package pkichip gives the rest of the router the double-layered token: layer 1 with the device's
// key and certificate, layer 2 with a key and a certificate for each VPN service, as
// crypto.Signer and certificates.
//
// The token's PKCS#11 library is foreign C code. It runs in a process of its own, wardgate-chip,
// which [Start] starts and watches: a process that dies or hangs is killed and started again,
// and whoever waited for it gets a typed error at once. This package is pure Go, and it never
// sees a PIN, except one that a person typed into the command line ([PINSource].Value).
package pkichip
