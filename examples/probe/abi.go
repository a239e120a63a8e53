package main

func int80(nr, a, b, c uintptr) uintptr
