module gosandbox.example/hello

go 1.19
