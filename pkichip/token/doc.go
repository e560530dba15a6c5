// Package token is the PKCS#11 side of the chip process: slots, sessions, login, keys,
// certificates and signatures of the double-layered token, and the loop that serves them to the
// client (package pkichip) over a socket.
//
// It is linked into wardgate-chip alone, because the library that it loads is foreign C code.
//
// Objects on the token: the private key, public key and certificate of layer 1 have the label
// "wardgate-device", those of layer 2 "wardgate-service:NAME"; what belongs together has the same
// CKA_ID. Intermediate certificates have the label "wardgate-chain:device" or
// "wardgate-chain:service:NAME". Nothing else on the token is touched.
package token
