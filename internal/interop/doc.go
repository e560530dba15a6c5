// Package interop runs our IKE against other people's, in network namespaces that its tests make
// and remove. The tests need root and the other implementation; where either is missing they are
// skipped, and fail when the environment says CI=true.
package interop
