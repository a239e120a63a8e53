module gosandbox.example/churn

go 1.19
