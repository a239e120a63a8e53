module gosandbox.example/dials

go 1.19
