// Package interop runs our IKE against other people's, in network namespaces that its tests make
// and remove. The tests need root and the other implementation; where either is missing they are
// skipped, and fail when the environment says CI=true.
//
// strongSwan does ESP in user space. libreswan and OpenIKED leave it to their kernel, and run in a guest
// whose kernel can (Guest in internal/lab); our end then has a TUN device, and ESP also as protocol 50.
package interop
