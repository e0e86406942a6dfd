// Package loosen lets tests change one step of a container's start, to show that
// an attack works where its mitigation is missing.
//
// The list of steps is data; a change to it travels with the context of one
// call, so that nothing else in the process becomes weaker: a test calls
// With, runtime.Create passes its list through Apply, and sends what comes back.
// The package can be imported below sandbox only, and a test of
// naru/sandbox/attacks fails if anything but a test calls With.
package loosen

import "context"

// key holds a change to values of type T.
type key[T any] struct{}

// With returns a context in which Apply makes the change. Tests only.
func With[T any](ctx context.Context, change func(T) T) context.Context {
	return context.WithValue(ctx, key[T]{}, change)
}

// Apply returns v, changed where the context asks for it.
func Apply[T any](ctx context.Context, v T) T {
	if change, ok := ctx.Value(key[T]{}).(func(T) T); ok {
		return change(v)
	}
	return v
}
